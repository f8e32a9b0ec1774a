// Text of models, shown as Markdown and able to do nothing.
//
// Every piece of an answer is shown by rendering all that has come so far, from the start: what a payload needs may
// come in two pieces, each harmless, so pieces are never looked at alone. HTML in the text is shown as it was written;
// links and pictures become their words and addresses. What Markdown makes of the rest then passes the sanitizer, which
// lets through a short list of elements and no attribute that could load or run anything.

import { Marked } from "./vendor/marked.esm.js";
import "./vendor/purify.min.js";

const MOST = 60000; // characters read as Markdown; more is shown plainly
const TAGS = ["p", "br", "hr", "ul", "ol", "li", "pre", "code", "em", "strong", "del", "blockquote", "table", "thead",
  "tbody", "tr", "th", "td"];
const RULES = { ALLOWED_TAGS: TAGS, ALLOWED_ATTR: ["start"], ALLOW_DATA_ATTR: false, ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true };

const escaped = (text) => text.replace(/[&<>"']/g, (found) => `&#${found.charCodeAt(0)};`);
const markdown = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html({ text }) { return escaped(text); },
    heading({ tokens }) { return `<p><strong>${this.parser.parseInline(tokens)}</strong></p>\n`; },
    link({ href, tokens, text }) {
      const words = this.parser.parseInline(tokens);
      return text === href ? words : `${words} (${escaped(href)})`;
    },
    image({ href, text }) { return `[picture: ${escaped(text)}${text ? ", " : ""}${escaped(href)}]`; },
    checkbox({ checked }) { return checked ? "\u2611 " : "\u2610 "; },
    code({ text }) { return `<pre><code>${escaped(text)}\n</code></pre>\n`; },
  },
});

/** HTML with everything taken out that is not on the list. */
export function purified(html) {
  return globalThis.DOMPurify.sanitize(html, RULES);
}

/** The whole of a model's text so far, as a fragment of the page. */
export function rendered(text) {
  if (text.length <= MOST) {
    try {
      return purified(markdown.parse(text, { async: false }));
    } catch {
      // Nested deeper than the parser can follow: plain text shows it as well.
    }
  }
  const plain = document.createElement("p");
  plain.className = "prose";
  plain.textContent = text;
  const fragment = document.createDocumentFragment();
  fragment.append(plain);
  return fragment;
}
