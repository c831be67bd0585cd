"""What the reading of corpora knows of each language: which files hold it, how they are decoded, what is no code to learn.

Pure functions of names and texts. What a language's code *says* is the matter of `code_graph`.
"""

import re
import tokenize
from collections.abc import Iterable
from io import BytesIO
from pathlib import PurePosixPath

from ..code_graph import EXTENSIONS, LANGUAGES, language_of

DEFAULT_LANGUAGES = ("python",)
# Names that data sets of code use.
_ALIASES = {
    "py": "python",
    "python3": "python",
    "js": "javascript",
    "node": "javascript",
    "golang": "go",
    "rb": "ruby",
}

# Directories and file names of test code.
_TEST_DIRS = {
    "python": r"tests?|.+_tests?|tests?_.+",
    "java": r"tests?|androidTest|testFixtures|integration-?tests?",
    "javascript": r"__tests__|__mocks__|tests?|specs?|e2e|cypress|.+[-_]tests?",
    "go": r"testdata|tests?",
    "ruby": r"specs?|tests?|features",
    "php": r"tests?|specs?",
}
_TEST_FILES = {
    "python": r"(?i:(test_.*|.*_test|tests?|conftest)\.py)",
    "java": r"(Test[A-Z0-9].*|.*[a-z0-9](Tests?|TestCase|IT))\.java",
    "javascript": r"(?i:(.*[._-](test|tests|spec|specs|e2e|cy)|tests?|spec)\.(js|mjs|cjs|jsx))",
    "go": r".*_test\.go",
    "ruby": r"(.*_(test|spec)|test_.*|spec_helper)\.rb",
    "php": r"(.*Tests?|.*TestCase|.*Spec|.*[._-]test)\.php",
}
_TEST_DIR = {language: re.compile(pattern, re.IGNORECASE) for language, pattern in _TEST_DIRS.items()}
_TEST_FILE = {language: re.compile(pattern) for language, pattern in _TEST_FILES.items()}

# A file is taken for a table (generated data, not code) when it has this size and fewer names than this per 1,000
# characters. On the standard library of Python 3.11 this finds 75 files (code pages, entities, topics): 18 % of its text.
TABLE_MIN_CHARS = 4096
TABLE_NAMES_PER_1000_CHARS = 14
# GitHub's own rule for what no one has written: the mean length of a line.
MINIFIED_LINE_CHARS = 110
_MINIFIED_NAME = re.compile(r"[.-]min\.[cm]?js\Z", re.IGNORECASE)

_QUOTED = r'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\''
_NUMBER, _NAME = r"\d[\w.]*", r"|(?P<name>[^\W\d]\w*)"
_C_PROSE = r"(?P<prose>/\*.*?\*/|^[ \t]*//[^\n]*)"
_C_LEXEMES = rf"{_C_PROSE}|(?P<literal>{_QUOTED}|//[^\n]*|{_NUMBER}){_NAME}"
_BACKTICK_LEXEMES = rf"{_C_PROSE}|(?P<literal>{_QUOTED}|`(?:[^`\\]|\\.)*`|//[^\n]*|{_NUMBER}){_NAME}"
_LEXEMES = {
    language: re.compile(pattern, re.DOTALL | re.MULTILINE)
    for language, pattern in {
        "python": r'(?P<prose>"""(?:[^\\]|\\.)*?"""|\'\'\'(?:[^\\]|\\.)*?\'\'\'|^[ \t]*#[^\n]*)'
        rf"|(?P<literal>{_QUOTED}|\#[^\n]*|{_NUMBER}){_NAME}",
        "java": _C_LEXEMES,
        "javascript": _BACKTICK_LEXEMES,
        "go": _BACKTICK_LEXEMES,
        "ruby": rf"(?P<prose>^=begin\b.*?^=end\b|^[ \t]*#[^\n]*)|(?P<literal>{_QUOTED}|\#[^\n]*|{_NUMBER}){_NAME}",
        "php": rf"(?P<prose>/\*.*?\*/|^[ \t]*(?://|\#)[^\n]*)|(?P<literal>{_QUOTED}|(?://|\#)[^\n]*|{_NUMBER}){_NAME}",
    }.items()
}


def parse_languages(names: Iterable[str]) -> tuple[str, ...]:
    """Names of languages, each word or comma-separated list, in the order of `LANGUAGES`.

    Raises:
        ValueError: none, or a language that is not read.
    """
    wanted = {_ALIASES.get(name, name) for text in names for name in text.lower().replace(",", " ").split()}
    unknown = sorted(wanted - set(LANGUAGES))
    if unknown or not wanted:
        raise ValueError(f"--languages: {', '.join(unknown) or 'none given'}; choose from {', '.join(LANGUAGES)}")
    return tuple(language for language in LANGUAGES if language in wanted)


def language_named(name: str) -> str:
    """A language's name as this package writes it."""
    return _ALIASES.get(name.strip().lower(), name.strip().lower())


def language_of_file(path: str) -> str | None:
    """The language of a file of a corpus by its name; None for other files.

    Stubs (`.pyi`) are left out: they repeat the signatures of the modules that they stand beside.
    """
    return None if path.endswith(".pyi") else language_of(path)


def default_suffix(language: str) -> str:
    """The usual ending of a language's files."""
    return EXTENSIONS[language][0]


def decode(data: bytes, language: str = "python") -> str:
    """Decode a file as its language's own reader would; line ends as "\\n".

    Args:
        data: the file's bytes.
        language: Python and Ruby files may declare an encoding (PEP 263); all else is UTF-8.

    Returns:
        The text, without a byte order mark.

    Raises:
        UnicodeError: the bytes are not text in the file's encoding; the message is a short reason.
    """
    if b"\0" in data:
        raise UnicodeError("null bytes")
    encoding = "utf-8"
    try:
        if language in ("python", "ruby"):
            encoding, _ = tokenize.detect_encoding(BytesIO(data).readline)
            text = data.decode(encoding)
        else:
            text = data.decode("utf-8-sig")
    except (SyntaxError, LookupError) as error:
        raise UnicodeError("unknown or contradictory encoding") from error
    except UnicodeError as error:
        raise UnicodeError(f"not {encoding} text") from error
    return normalize_newlines(text)


def normalize_newlines(text: str) -> str:
    """Line ends as Python's own reader gives them."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def is_table(text: str, language: str = "python") -> bool:
    """Whether a file is generated data: hardly any names outside strings, comments and numbers.

    Documentation (comments of whole lines, and Python's triple-quoted strings) does not count, so that a well documented
    file stays.
    """
    if len(text) < TABLE_MIN_CHARS:
        return False
    num_names = 0
    num_chars = len(text)
    enough = num_chars * TABLE_NAMES_PER_1000_CHARS / 1000
    for match in _LEXEMES[language].finditer(text):
        if match.lastgroup == "name":
            num_names += 1
            # Most code shows in its first lines that it has names enough, however much of the rest is documentation.
            if num_names >= enough:
                return False
        elif match.lastgroup == "prose":
            num_chars -= match.end() - match.start()
    return num_names * 1000 < TABLE_NAMES_PER_1000_CHARS * num_chars and num_chars >= TABLE_MIN_CHARS // 2


def is_minified(text: str, path: str, language: str) -> bool:
    """Whether a JavaScript file was written by a program: named so, or with lines that no one writes."""
    if language != "javascript":
        return False
    return bool(_MINIFIED_NAME.search(path)) or len(text) > MINIFIED_LINE_CHARS * (text.count("\n") + 1)


def is_test_path(path: str, language: str = "python") -> bool:
    """Whether a relative path lies in a test directory or is a test file by its name."""
    *directories, name = PurePosixPath(path).parts or ("",)
    return any(map(_TEST_DIR[language].fullmatch, directories)) or bool(_TEST_FILE[language].fullmatch(name))
