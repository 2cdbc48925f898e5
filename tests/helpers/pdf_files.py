"""PDFs written by hand, well-formed and hostile ones, so that every byte of them is the test's own."""

import zlib
from collections.abc import Iterable

COURIER = 10  # points; a character is 0.6 of it wide
Placed = tuple[float, float, str]  # x, y of the baseline (points from the lower left), one line of text

CATALOG = b"<< /Type /Catalog /Pages 2 0 R >>"
# Codes 1 to 6 are ligatures, 7 is a soft hyphen; the others are Latin-1's.
FONT = (
    b"<< /Type /Font /Subtype /Type1 /BaseFont /Courier /Encoding << /BaseEncoding /WinAnsiEncoding "
    b"/Differences [1 /ff /fi /fl /ffi /ffl /uniFB06 /uni00AD] >> >>"
)
LIGATURES = {"ffi": "\x04", "ffl": "\x05", "ff": "\x01", "fi": "\x02", "fl": "\x03", "st": "\x06"}


def document(objects: Iterable[bytes], trailer: bytes = b"") -> bytes:
    """Number the objects from 1, the first being the catalog, and write header, cross references and trailer."""
    data, offsets = b"%PDF-1.5\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(offsets) + 1
    return data + (
        b"xref\n0 %d\n0000000000 65535 f \n%btrailer\n<< /Size %d /Root 1 0 R %b >>\nstartxref\n%d\n%%%%EOF\n"
        % (size, table, size, trailer, len(data))
    )


def stream(content: bytes, entries: bytes = b"") -> bytes:
    return b"<< /Length %d %b >>\nstream\n%b\nendstream" % (len(content), entries, content)


def one_page(content: bytes, *more_objects: bytes, resources: bytes = b"/Font << /F1 3 0 R >>") -> bytes:
    """Make a document of one page from its content stream object; `more_objects` are numbered from 6."""
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 5 0 R /Resources << %b >> >>" % resources
    pages = b"<< /Type /Pages /Count 1 /Kids [4 0 R] >>"
    return document([CATALOG, pages, FONT, page, content, *more_objects])


def font_with_map(to_unicode: int) -> bytes:
    """A font whose ToUnicode map is that object."""
    return b"<< /Type /Font /Subtype /Type1 /BaseFont /Courier /ToUnicode %d 0 R >>" % to_unicode


def unicode_map(letters: dict[str, str]) -> bytes:
    """A ToUnicode map: what a reader is told for the codes of these characters."""
    lines = b"".join(b"<%02x> <%04x>\n" % (ord(code), ord(letter)) for code, letter in letters.items())
    return stream(
        b"/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /Map def /CMapType 2 def\n"
        b"1 begincodespacerange <00> <ff> endcodespacerange\n"
        b"%d beginbfchar\n%bendbfchar\nendcmap end end" % (len(letters), lines)
    )


def book_with_fonts(pages: list[tuple[str, dict[str, str] | None]]) -> bytes:
    """Make a document of pages of text, each in a font of its own with such a map, or in the usual one."""
    kids = b" ".join(b"%d 0 R" % number for number in range(4, 4 + 4 * len(pages), 4))
    objects = [CATALOG, b"<< /Type /Pages /Count %d /Kids [%b] >>" % (len(pages), kids), FONT]
    for number, (text, letters) in zip(range(4, 4 + 4 * len(pages), 4), pages, strict=True):
        font = 3 if letters is None else number + 2
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R "
            b"/Resources << /Font << /F1 %d 0 R >> >> >>" % (number + 1, font)
        )
        objects.append(stream(text_operators(set_lines(text.splitlines()))))
        objects += [font_with_map(number + 3), unicode_map(letters or {"a": "a"})]
    return document(objects)


def book(pages: list[list[Placed]]) -> bytes:
    """Make a document of pages of placed lines."""
    numbers = range(4, 4 + 2 * len(pages), 2)
    kids = b" ".join(b"%d 0 R" % number for number in numbers)
    objects = [CATALOG, b"<< /Type /Pages /Count %d /Kids [%b] >>" % (len(pages), kids), FONT]
    for number, page in zip(numbers, pages, strict=True):
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R >> >> >>" % (number + 1)
        )
        objects.append(stream(text_operators(page)))
    return document(objects)


def text_operators(page: list[Placed]) -> bytes:
    shown = (b"1 0 0 1 %f %f Tm (%b) Tj" % (x, y, _escaped(line)) for x, y, line in page)
    return b"BT /F1 %d Tf %b ET" % (COURIER, b"\n".join(shown))


def _escaped(line: str) -> bytes:
    for mark in "\\()":
        line = line.replace(mark, "\\" + mark)
    return line.encode("latin-1")


def set_lines(lines: list[str], left: float = 72, top: float = 720) -> list[Placed]:
    """Place lines below each other; leading spaces indent, empty lines leave room."""
    return [(left, top - 12 * number, line) for number, line in enumerate(lines) if line.strip()]


def plain_book(pages: list[str]) -> bytes:
    return book([set_lines(page.splitlines()) for page in pages])


def flate_bomb(layers: int, size: int) -> bytes:
    """A content stream of `size` harmless bytes, deflated again and again."""
    content = b" " * size
    for _ in range(layers):
        content = zlib.compress(content, 9)
    return stream(content, b"/Filter [%b]" % (b"/FlateDecode " * layers))


def laughing_forms(depth: int, width: int = 10) -> bytes:
    """A page whose forms draw forms that draw forms: width ** depth texts."""
    forms = []
    for level in range(depth):
        content = b"/X Do " * width if level < depth - 1 else b"BT /F1 9 Tf (ha) Tj ET"
        child = b"/XObject << /X %d 0 R >>" % (7 + level) if level < depth - 1 else b"/Font << /F1 3 0 R >>"
        entries = b"/Type /XObject /Subtype /Form /BBox [0 0 600 700] /Resources << %b >>" % child
        forms.append(stream(content, entries))
    return one_page(stream(b"/X Do"), *forms, resources=b"/XObject << /X 6 0 R >>")


def page_tree(pages: bytes) -> bytes:
    """A document whose page tree's root is `pages`; object 4 is a real page."""
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Resources << /Font << /F1 3 0 R >> >> /Contents 5 0 R >>"
    return document([CATALOG, pages, FONT, page, stream(b"BT /F1 9 Tf (A page that is there.) Tj ET")])
