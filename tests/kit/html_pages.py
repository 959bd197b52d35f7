"""What can be said of a page without a browser: its outline, its labels, its colours."""

import re
from html.parser import HTMLParser

_VOID = {"meta", "link", "img", "input", "br", "hr"}
#: Elements that must not be empty: each is a promise of something to read.
_FILLED = ("h1", "h2", "h3", "p", "figure", "figcaption", "summary", "li", "th", "dt", "section")


class Outline(HTMLParser):
    """The elements of a page: what each holds of text and drawings, and its attributes.

    Attributes:
        elements: (tag, attributes, text or drawing inside), in the order of their ends.
        headings: The levels of the headings, in order.
        unclosed: Tags that were not closed.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], str]] = []
        self.headings: list[int] = []
        self._open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(html)
        self.close()
        self.unclosed = [tag for tag, *_ in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag in ("rect", "circle", "polyline", "path", "polygon"):
            self.handle_data("#")  # something is drawn
        if tag in _VOID:
            self.elements.append((tag, found, ""))
        else:
            self._open.append((tag, found, []))

    def handle_endtag(self, tag: str) -> None:
        opened, attributes, text = self._open.pop()
        assert opened == tag, f"<{opened}> is closed by </{tag}>"
        self.elements.append((tag, attributes, "".join(text).strip()))

    def handle_data(self, data: str) -> None:
        for _, _, text in self._open:
            text.append(data)

    def of(self, tag: str) -> list[tuple[dict[str, str], str]]:
        """Attributes and content of every element of this name."""
        return [(attributes, text) for found, attributes, text in self.elements if found == tag]


def check_structure(html: str) -> Outline:
    """One main part, headings in order, labels where they are needed, nothing that is empty."""
    page = Outline(html)
    assert page.unclosed == []
    assert len(page.of("main")) == len(page.of("h1")) == 1
    assert page.headings[0] == 1
    jumps = zip(page.headings, page.headings[1:], strict=False)
    assert all(after <= before + 1 for before, after in jumps), page.headings
    for tag in _FILLED:
        assert [attributes for attributes, text in page.of(tag) if not text] == [], f"empty {tag}"
    for attributes, text in page.of("svg"):
        assert attributes["role"] == "img", "its inside is not read out"
        assert attributes["aria-label"], text
    for attributes, _ in page.of("div"):
        if "scroll" in attributes.get("class", ""):  # or keys could not scroll it
            assert attributes["tabindex"] == "0"
            assert attributes["aria-label"]
    for tag in ("input", "select"):
        for attributes, _ in page.of(tag):
            named = {each["for"] for each, text in page.of("label") if text and "for" in each}
            assert attributes.get("aria-label") or attributes.get("id") in named, attributes
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    return page


def palettes(css: str) -> dict[str, dict[str, str]]:
    """The colours of a style sheet by name, in light and in dark."""
    light: dict[str, str] = {}
    dark: dict[str, str] = {}
    roots = r"(@media \(prefers-color-scheme: dark\) \{\s*)?:root \{(.*?)\}"
    for block in re.finditer(roots, css, re.DOTALL):
        into = dark if block[1] else light
        into |= dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]+)", block[2]))
    return {"light": light, "dark": light | dark}


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, 1 to 21: WCAG 2.2, relative luminance of sRGB."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
