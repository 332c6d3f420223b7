"""One spelling for the many ways to write an answer: LaTeX and Unicode notation, spaces, wrappers, thousands."""

from __future__ import annotations

import re
import unicodedata

MAX_CHARS = 1000
"""Longer answers are compared as text."""
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni")
SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ]+")
VULGAR = re.compile("[¼-¾⅐-⅞↉]")
SYMBOLS = {
    **dict.fromkeys("−–‐‑‒﹣－", "-"),
    **dict.fromkeys("×✕⋅·∙•∗", "\\times "),
    **dict.fromkeys("“”„‟", '"'),
    **dict.fromkeys("‘’‛", "'"),
    **dict.fromkeys("\u00a0\u2009\u202f\u2007\u200a\u2002\u2003\u2005\u2006\u3000", " "),
    **dict.fromkeys("\u200b\u200c\u200d\ufeff\u2060\u2061\u2062", ""),
    **{"÷": "/", "⁄": "/", "∕": "/", "√": "\\sqrt ", "π": "\\pi ", "∞": "\\infty ", "°": "\\degree ", "º": "\\degree "},
    **{"∪": "\\cup ", "∩": "\\cap ", "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "±": "\\pm "},
    **{
        "∈": "\\in ",
        "∅": "\\emptyset ",
        "ℝ": "\\mathbb{R}",
        "，": ",",
        "；": ";",
        "：": ":",
        "．": ".",
        "∣": "|",
        "ⅈ": "i",
        "…": "...",
    },
}
TRANSLATE = str.maketrans(SYMBOLS)
TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|mbox|hbox|mathrm|mathbf|mathit|mathsf|operatorname\*?|boldsymbol|bm)\s*\{([^{}]*)\}"
)
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{([^{}]*)\}")
SIZE = re.compile(
    r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?|\\(?:displaystyle|textstyle|limits|nolimits|bf|rm|it)(?![a-zA-Z])"
)
THIN = re.compile(r"\\[,;:! ]|~|\\q?quad(?![a-zA-Z])|\\(?:thinspace|enspace|medspace|thickspace|hspace\{[^{}]*\})")
RENAMED = [
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![a-zA-Z])"), r"\\binom"),
    (re.compile(r"\\(?:cdot|ast|cdotp|bullet)(?![a-zA-Z])"), r"\\times "),
    (re.compile(r"\\div(?![a-zA-Z])"), "/"),
    (re.compile(r"\\(?:leq|leqslant)(?![a-zA-Z])"), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant)(?![a-zA-Z])"), r"\\ge "),
    (re.compile(r"\\(?:neq)(?![a-zA-Z])"), r"\\ne "),
    (re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    (re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    (re.compile(r"\\(?:lbrace)(?![a-zA-Z])"), r"\\{"),
    (re.compile(r"\\(?:rbrace)(?![a-zA-Z])"), r"\\}"),
    (re.compile(r"\\(?:lvert|rvert|vert|mid)(?![a-zA-Z])"), "|"),
    (re.compile(r"\\(?:varnothing)(?![a-zA-Z])"), r"\\emptyset "),
    (re.compile(r"\\(?:simeq|sim|thickapprox|doteq)(?![a-zA-Z])"), r"\\approx "),
    (re.compile(r"\\(?:implies|Rightarrow|to|rightarrow|therefore|because)(?![a-zA-Z])"), " "),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\^\s*\{?\s*\\degree\s*\}?|\\circ(?![a-zA-Z])"), r"\\degree "),
    (re.compile(r"\\e?uro(?![a-zA-Z])|\\texteuro(?![a-zA-Z])"), "€"),
    (re.compile(r"\\pounds(?![a-zA-Z])"), "£"),
    (re.compile(r"\\langle(?![a-zA-Z])|^\s*<(?=[^<>=]*,[^<>=]*>\s*$)"), "("),
    (re.compile(r"\\rangle(?![a-zA-Z])|(?<=,)([^<>=,()]*)>\s*$"), r"\1)"),
]
ENVIRONMENT = re.compile(
    r"\\begin\{(?:[pbvBV]?matrix|array|smallmatrix)\}(?:\{[^{}]*\})?(.*?)\\end\{[a-zA-Z]+\}", re.DOTALL
)
REPEATING = re.compile(r"(\d{0,50})\.(\d{0,50})\s*\\(?:overline|bar|dot)\s*\{?(\d{1,50})\}?")
NEXT_ROW = "¶"
ROW_END = re.compile(r"\\\\(?:\[[^\]]*\])?|\\cr(?![a-zA-Z])")
DELIMITED = re.compile(r"\\[()\[\]]|\$")
BRACED = re.compile(r"\\[()\[\]]")
PRICE = re.compile(r"\$\s*[-+]?[\d.]|\d\s*\$")
DOLLARS = re.compile(r"\\\$")
"""A dollar sign delimits mathematics, unless it is escaped or alone."""
TIMES = re.compile(r"(?<=\d)\s*x\s*(?=10\s*\^)")
"""`3 x 10^8`."""

THOUSANDS = [
    re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])"),
    re.compile(r"(?<![\d.,])\d{1,2}(?:,\d{2})+,\d{3}(?![\d,])"),
    re.compile(r"(?<![\d.,])\d{1,3}(?:\{,\}\d{3})+(?!\d)"),
    re.compile(r"(?<![\d.,])\d{1,3}(?:,?\\!\d{3})+(?!\d)"),
    re.compile(r"(?<![\d.,])\d{1,3}(?:\{?,\}?\\!\d{3})+(?!\d)"),
    re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\\[,;: ]|~| )\d{3})+(?!\d)"),
    re.compile(r"(?<![\d.,])\d{1,3}(?:['_]\d{3})+(?!\d)"),
]
EUROPEAN = re.compile(r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+),(\d+)(?![\d.,])|(?<![\d.,])(\d{1,3}(?:\.\d{3}){2,})(?![\d.,])")
BULLET = re.compile(r"^\s*[•∙]\s+")
BRACKETED = re.compile(r"[(\[]|\\\{")
"""A comma inside brackets separates."""


def cleaned(text: str) -> str:
    """The answer in one notation: plain LaTeX without wrappers, sizes, units of spacing and grouped thousands."""
    text = BULLET.sub("", text)
    text = SUPERSCRIPT.sub(lambda m: "^{" + m[0].translate(SUPERSCRIPTS) + "}", text)
    text = VULGAR.sub(lambda m: " " + unicodedata.normalize("NFKC", m[0]).replace("\u2044", "/"), text)
    text = unicodedata.normalize("NFKC", text.translate(TRANSLATE)).translate(TRANSLATE)
    text = _joined(text)
    text = ENVIRONMENT.sub(_rows, text)
    text = _inlined(text)
    text = SIZE.sub("", text)
    for pattern, name in RENAMED:
        text = pattern.sub(name, text)
    text = REPEATING.sub(_repeated, text)
    text = _emphasised(text)
    text = _undelimited(text)
    text = TIMES.sub(r"\\times ", text)
    text = THIN.sub(_space, text)
    text = _joined(" ".join(text.split()))
    return " ".join(text.split())


def _rows(match: re.Match[str]) -> str:
    rows = re.sub(r"\\hline(?![a-zA-Z])", "", ROW_END.sub(NEXT_ROW, match[1])).strip().removesuffix(NEXT_ROW)
    return f"\\matrix{{{rows}}}"


def _repeated(match: re.Match[str]) -> str:
    r"""`0.1\overline{6}` as a fraction."""
    whole, fixed, repeated = match.groups()
    nines = 10 ** len(repeated) - 1
    above = int(whole or "0") * 10 ** len(fixed) * nines + int(fixed or "0") * nines + int(repeated)
    return f"({above}/{nines * 10 ** len(fixed)})"


def _inlined(text: str) -> str:
    r"""The content of `\boxed{…}` and `\text{…}` in their place."""
    for pattern, content in ((TEXT, r" \1 "), (BOX, r"\1"), (TEXT, r" \1 ")):
        for _ in range(3):
            text, count = pattern.subn(content, text)
            if not count:
                break
    return text


def _undelimited(text: str) -> str:
    """Without the signs around mathematics; a dollar sign that is a currency stays."""
    if DOLLARS.search(text):
        return "$".join(DELIMITED.sub(" ", part) for part in DOLLARS.split(text))
    is_price = text.count("$") == 1 and PRICE.search(text) and not BRACED.search(text)
    return text if is_price else DELIMITED.sub(" ", text)


def _space(match: re.Match[str]) -> str:
    return "" if match[0] == "\\!" else " "


def _emphasised(text: str) -> str:
    """`2**3` is a power, `**12**` is emphasis."""
    text = text.strip(" *")
    return text.replace("**", "") if text.count("**") % 2 == 0 else text.replace("**", "^")


def _joined(text: str) -> str:
    """Digits without the marks that group thousands; a comma groups outside brackets alone."""
    inside = bool(BRACKETED.search(text))
    for i, pattern in enumerate(THOUSANDS):
        if i < 2 and inside:
            continue
        text = pattern.sub(lambda m: re.sub(r"[^\d]", "", m[0]), text)
    if not inside:
        text = re.sub(r"(?<=\d)\{,\}(?=\d)", ".", text)
        text = EUROPEAN.sub(lambda m: m[1].replace(".", "") + "." + m[2] if m[1] else m[3].replace(".", ""), text)
    return text.replace("{,}", ",")
