"""TF-IDF and logistic regression: which words, and which pairs of neighbours, speak for which label.

A term that occurs n times in a text weighs (1 + ln n) times its inverse document frequency, ln((1 + N) / (1 + df)) + 1,
where df of the N training texts hold it; each text is then scaled to length 1 (Salton and Buckley 1988). A linear model
on such features needs some tens of microseconds an item and, where words decide, is hard to beat.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from sizewise.core.errors import UsageError
from sizewise.core.params import Range, Search
from sizewise.load.linear_model import Analyzer, LinearModel
from sizewise.make.logistic import ClassWeight, fit_logistic, halved_if_alike
from sizewise.make.method import head_method


@head_method
def head_tfidf(
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    c: Annotated[float, Range(1e-6, 1e6), Search(1.0, 10.0, 30.0)] = 10.0,
    ngram_max: Annotated[int, Range(1, 5), Search(1, 2)] = 2,
    min_df: Annotated[int, Range(1), Search(1, 2)] = 2,
    class_weight: ClassWeight = "none",
) -> LinearModel:
    """Classify by words: TF-IDF and logistic regression.

    Args:
        texts: the training inputs.
        labels: theirs.
        c: how much a wrong answer weighs against large coefficients; larger fits the training rows more closely.
        ngram_max: longest run of neighbouring words that counts as a term.
        min_df: in how many texts a term must occur to be kept.
        class_weight: balanced lets every class weigh the same, however rare.

    Raises:
        UsageError: no term occurs in `min_df` texts, or all labels are one.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    analyzer = Analyzer(ngram_max=ngram_max)
    vectorizer = TfidfVectorizer(
        ngram_range=(1, ngram_max),
        min_df=min_df,
        lowercase=analyzer.lowercase,
        sublinear_tf=analyzer.sublinear,
        token_pattern=analyzer.token_pattern,
    )
    try:
        features = vectorizer.fit_transform(texts)
    except ValueError as error:  # scikit-learn says so when the vocabulary is empty, by whatever cause
        raise UsageError(
            f"no word of two letters or more occurs in {min_df} of the {len(texts)} training texts; lower min_df"
        ) from error
    fitted = fit_logistic(features, labels, c=c, class_weight=class_weight)
    model = LinearModel(
        kind="tfidf",
        classes=fitted.classes,
        coefficients=fitted.coefficients,
        intercept=fitted.intercept,
        vocabulary=tuple(map(str, vectorizer.get_feature_names_out())),
        idf=vectorizer.idf_.astype(np.float32),
        analyzer=analyzer,
    )
    return halved_if_alike(model, texts)
