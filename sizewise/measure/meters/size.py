"""Size: what a model weighs. Read from its files, so exact."""

from sizewise.core.measurement import Measurement, unmeasured
from sizewise.core.model import Model


def size(model: Model) -> list[Measurement]:
    """Bytes on disk, number of weights, and bits per weight with everything in the files counted.

    Args:
        model: any model; of an endpoint nothing is known.

    Returns:
        `bytes`, `parameters`, `bits_per_weight`, in that order.
    """
    if model.kind == "endpoint":
        why = "an endpoint does not tell"
        return [unmeasured(name, unit, why) for name, unit in (("bytes", "bytes"), ("parameters", ""), (_BITS, "bits"))]
    on_disk = Measurement("bytes", "bytes", model.size_bytes, method="size of the model's files")
    if not model.parameters:
        why = "the files do not say how many weights there are"
        return [on_disk, unmeasured("parameters", "", why), unmeasured(_BITS, "bits", why)]
    method = "all bytes of the files, tokenizer and header included, over the number of weights"
    return [
        on_disk,
        Measurement("parameters", "", model.parameters, method="sum of the tensors' elements"),
        Measurement(_BITS, "bits", model.bits_per_weight, method=method),
    ]


_BITS = "bits_per_weight"
