"""What counts as text: any language, code, formulas, tables; and what does not: symbols, exchanged letters."""

# ruff: noqa: RUF001

import random
import string
import sysconfig
from pathlib import Path

import pytest

from sources.readers.pdf.legible import is_legible

# A few sentences of the Universal Declaration of Human Rights, in languages with unusual letters.
LANGUAGES = {
    "Finnish": (
        "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan. Heille on annettu "
        "järki ja omatunto, ja heidän on toimittava toisiaan kohtaan veljeyden hengessä. Jokainen on "
        "oikeutettu kaikkiin tässä julistuksessa esitettyihin oikeuksiin ja vapauksiin ilman minkäänlaista "
        "rotuun, väriin, sukupuoleen, kieleen, uskontoon, poliittiseen tai muuhun mielipiteeseen perustuvaa "
        "erotusta."
    ),
    "Polish": (
        "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni obdarzeni "
        "rozumem i sumieniem i powinni postępować wobec innych w duchu braterstwa. Każdy człowiek posiada "
        "wszystkie prawa i wolności zawarte w niniejszej Deklaracji bez względu na różnice rasy, koloru, "
        "płci, języka, wyznania, poglądów politycznych i innych przekonań, narodowości, pochodzenia "
        "społecznego, majątku, urodzenia lub innego stanu."
    ),
    "Vietnamese": (
        "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi. Mọi con người đều "
        "được tạo hóa ban cho lý trí và lương tâm và cần phải đối xử với nhau trong tình anh em. Ai cũng được "
        "hưởng những quyền tự do ghi trong bản Tuyên ngôn này không phân biệt đối xử vì bất cứ lý do nào, như "
        "chủng tộc, màu da, nam nữ, ngôn ngữ, tôn giáo, quan điểm chính trị hay mọi quan điểm khác, nguồn gốc "
        "quốc gia hay xã hội, tài sản."
    ),
    "Welsh": (
        "Genir pawb yn rhydd ac yn gydradd â'i gilydd mewn urddas a hawliau. Fe'u cynysgaeddir â rheswm a "
        "chydwybod, a dylai pawb ymddwyn y naill at y llall mewn ysbryd cymodlon. Y mae gan bawb hawl i'r "
        "holl hawliau a'r rhyddfreintiau a nodir yn y Datganiad hwn, heb unrhyw wahaniaeth o gwbl, yn "
        "arbennig unrhyw wahaniaeth hil, lliw, rhyw, iaith, crefydd, barn boliticaidd neu unrhyw farn arall, "
        "tarddiad cenedlaethol neu gymdeithasol, eiddo, geni neu safle arall."
    ),
    "Greek": (
        "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. Είναι "
        "προικισμένοι με λογική και συνείδηση, και οφείλουν να συμπεριφέρονται μεταξύ τους με πνεύμα "
        "αδελφοσύνης."
    ),
    "Russian": (
        "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и "
        "совестью и должны поступать в отношении друг друга в духе братства."
    ),
    "Arabic": (
        "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميراً "
        "وعليهم أن يعامل بعضهم بعضاً بروح الإخاء."
    ),
    "Chinese": ("人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。") * 3,
    "Hindi": (
        "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात "
        "स्वतन्त्रता और समानता प्राप्त है। उन्हें बुद्धि और "
        "अन्तरात्मा की देन प्राप्त है और परस्पर उन्हें भाईचारे के भाव "
        "से बर्ताव करना चाहिए।"
    ),
}


@pytest.fixture(scope="module")
def prose(texts) -> list[str]:
    """Pages of 2,500 characters of real text."""
    whole = "\n".join(texts)
    return [whole[start : start + 2500] for start in range(0, 300_000, 2500)]


def exchanged(page: str, letters: str) -> str:
    return page.translate(str.maketrans(string.ascii_letters, letters + letters.upper()))


def share_legible(pages: list[str]) -> float:
    return sum(map(is_legible, pages)) / len(pages)


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages_are_text(language: str):
    assert is_legible(LANGUAGES[language]) and is_legible(LANGUAGES[language].upper())


def test_prose_and_code_are_text(prose):
    assert share_legible(prose) == 1.0
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:150]
    pages = {path.name: path.read_text(encoding="utf-8", errors="replace")[:2500] for path in paths}
    # The one that is a cipher (ROT13).
    assert [name for name, page in pages.items() if not is_legible(page)] == ["this.py"]


@pytest.mark.parametrize(
    "page",
    [
        "",
        "~ § ~",
        "\n".join(f"{n:>6} {n * n:>10} {n / 7:>12.4f} |" for n in range(60)),
        "\n".join(f"Chapter {n} {'. ' * 40}{n * 12}" for n in range(40)),
        "\n".join(f"x_{n}^2 + ∑ α_{n} = ∫ f(x) dx ≤ β, ∀x ∈ ℝ" for n in range(40)),
        "ACGTTGCAACGGTTAACC" * 120,
        "4fzQ9xk2LmW8vRbT1sYcN6hJ0dGpEaUi7oX3eKyZ5uC+" * 50,
        "\n".join(f"• item {n}\uf0b7 of a list" for n in range(40)),
        "=" * 500 + "\nResults\n" + "-" * 500,
    ],
    ids=["nothing", "marks", "table", "contents", "formulas", "genes", "base64", "bullets", "rules"],
)
def test_what_cannot_be_told_is_text(page: str):
    assert is_legible(page)


@pytest.mark.parametrize("shift", [1, 2, 3, 5, 7, 10, 13, 17, 20, 25])
def test_shifted_letters_are_not(prose, shift: int):
    letters = string.ascii_lowercase
    assert share_legible([exchanged(page, letters[shift:] + letters[:shift]) for page in prose]) < 0.1


def test_shuffled_letters_are_rarely(prose):
    generator = random.Random(0)
    shares = []
    for _ in range(40):
        letters = "".join(generator.sample(string.ascii_lowercase, 26))
        shares.append(share_legible([exchanged(page, letters) for page in prose[:10]]))
    assert sum(shares) / len(shares) < 0.2


def test_symbols_and_numbers_of_glyphs_are_not(prose):
    private = [page.translate({code: 0xF000 + code for code in range(33, 127)}) for page in prose]
    glyphs = [page.translate({code: max(1, code - 29) for code in range(32, 127)}) for page in prose]
    marks = [page.translate({ord(letter): 33 + ord(letter) % 15 for letter in string.ascii_letters}) for page in prose]
    replaced = [page.translate(dict.fromkeys(map(ord, string.ascii_lowercase), "\ufffd")) for page in prose]
    for pages in (private, glyphs, marks, replaced):
        assert share_legible(pages) < 0.05


def test_another_alphabet_read_as_accents_is_not():
    russian = (LANGUAGES["Russian"] * 3).replace("в", "вы").encode("cp1251").decode("latin-1")
    words = " ".join(russian[start : start + 9] for start in range(0, len(russian), 7))
    assert not is_legible(words)
