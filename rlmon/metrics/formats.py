"""Which format a completion is written in, what its template is, and what it answers.

Everything here reads hostile text. Nothing is executed; every parser is capped in bytes and depth, silent, and
any exception it raises means "not this mode".
"""

from __future__ import annotations

import ast
import itertools
import json
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import rlmon.metrics.syntax as syntax
from rlmon.errors import ConfigError
from rlmon.printable import nearest

PARSE_CHARS = 8_000
"""Characters of a part that format parsers look at; the rest of a longer one is not read."""
TEMPLATE_CHARS = 1_024
"""Characters that a template covers."""
BUILT_IN_MODES: tuple[str, ...] = (
    "fenced",
    "xml",
    "json",
    "python",
    "boxed",
    "list",
    "steps",
    "bare",
    "prose",
    "other",
)
"""Built-in format modes in the order in which they are tried; ``other`` is what nothing else claims."""

_PYTHON_HEAD_CHARS = 300
_PYTHON_WHOLE_CHARS = 4_000
_MAX_BRACKET_DEPTH = 50

_REASONING_TAGS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
    ("<|channel|>analysis", "<|channel|>final"),
    ("◁think▷", "◁/think▷"),
)


def split_reasoning(text: str) -> tuple[str | None, str]:
    """The reasoning block and the part after it.

    Knows ``<think>``, ``<thinking>``, ``<reasoning>``, ``<thought>``, ``[THINK]``, the harmony ``analysis`` channel
    and their relatives. A block counts when nothing but white space stands before it. A block that is never closed
    is all reasoning; a closing tag without an opening one (the chat template held the opening one) closes a block
    that began with the text.

    Returns ``(reasoning, answer_part)``; ``reasoning`` is ``None`` when there is no block. Never raises.
    """
    start = len(text) - len(text.lstrip()) if text[:1].isspace() else 0
    lead = text[start : start + 1]
    if lead in "<[◁" and lead:
        for opening, closing in _REASONING_TAGS:
            if text.startswith(opening, start):
                begin = start + len(opening)
                end = text.find(closing, begin)
                if end < 0:
                    return text[begin:], ""
                return text[begin:end], _after_channel(text[end + len(closing) :])
    # Single marks are found by memchr; this is most of the cost of a long text.
    if not ("<" in text and "</" in text) and not ("[" in text and "[/" in text):
        return None, text
    for closing in ("</think>", "[/THINK]", "</reasoning>", "</thinking>"):
        end = text.find(closing)
        if end >= 0 and text.find(closing.replace("/", "", 1), 0, end) < 0:
            return text[:end], text[end + len(closing) :]
    return None, text


def _after_channel(rest: str) -> str:
    if rest.startswith("<|"):
        at = rest.find("<|message|>", 0, 200)
        if at >= 0:
            return rest[at + len("<|message|>") :]
    return rest


# --- templates ------------------------------------------------------------------------------------------------

_QUOTED = re.compile(r"\"[^\"\n]{0,200}\"")
_SINGLE_QUOTED = re.compile(r"'(?<!\w')[^'\n]{1,120}'(?!\w)")
_CURLY_QUOTED = re.compile("“[^”\n]{0,200}”|«[^»\n]{0,200}»|「[^」\n]{0,200}」")
NUMBER = re.compile(r"\d(?:[\d.,]*\d)?")
_NAME = re.compile("[A-ZÀ-ÖØ-ÞΑ-ΩА-Я]\\w*")
_ASCII_NUMBER = re.compile(r"\d(?:[\d.,]*\d)?", re.ASCII)
_ASCII_NAME = re.compile(r"[A-Z]\w*", re.ASCII)
_SPACE = re.compile(r"[ \t]{2,}")


def mask_template(text: str) -> str:
    """The text with quoted spans, numbers and capitalised words replaced, cut to ``TEMPLATE_CHARS`` characters.

    Two completions with the same masked text say the same thing with other numbers and names:
    ``Ann has 16 figs.`` and ``Bob has 9 figs.`` both become ``N has # figs.`` A capitalised word is masked wherever
    it stands, since a name often opens a sentence. Quotes become ``Q``. Never raises.
    """
    masked = text[:TEMPLATE_CHARS].strip()
    if '"' in masked:
        masked = _QUOTED.sub("«", masked)
    if "'" in masked:
        masked = _SINGLE_QUOTED.sub("«", masked)
    if not masked.isascii():
        masked = _CURLY_QUOTED.sub("«", masked)
        masked = _NAME.sub("N", NUMBER.sub("#", masked))
    else:
        masked = _mask_ascii(masked)
    if "  " in masked or "\t" in masked:
        masked = _SPACE.sub(" ", masked)
    return masked.replace("«", "Q")


# Searching for a class of characters walks the text; searching for one character does not. So capitals and digits
# become one mark each first (bytes.translate costs a nanosecond a character).
_CAPITAL, _DIGIT = b"\x01", b"\x02"
_MARKED = bytes(1 if 65 <= byte <= 90 else 2 if 48 <= byte <= 57 else byte for byte in range(256))
_MARKED_NUMBER = re.compile(rb"\x02(?:[\x02.,]*\x02)?")
_MARKED_NAME = re.compile(rb"\x01[a-z_\x01]*")


def _mask_ascii(text: str) -> str:
    """``_ASCII_NAME`` and ``_ASCII_NUMBER`` replaced, in half the time."""
    data = text.encode("ascii")
    if _CAPITAL in data or _DIGIT in data:
        return _ASCII_NAME.sub("N", _ASCII_NUMBER.sub("#", text))
    return _MARKED_NAME.sub(b"N", _MARKED_NUMBER.sub(b"#", data.translate(_MARKED))).decode("ascii")


OPENING_TOKEN = re.compile(r"\w+|[^\w\s]")
OPENING_TOKENS = 8


def opening_tokens(text: str) -> tuple[str, ...]:
    """The first 8 tokens (words or single marks) of the masked text; fewer where the text is shorter."""
    return opening_of_masked(mask_template(text[:400]))


def opening_of_masked(masked: str) -> tuple[str, ...]:
    found = itertools.islice(OPENING_TOKEN.finditer(masked[:200]), OPENING_TOKENS)
    return tuple(token.group() for token in found)


# --- final answer ---------------------------------------------------------------------------------------------

_ANSWER_IS = re.compile(
    r"(?i)\b(?:final\s+)?answer(?:\s+is)?\s*(?:[:=]|\bis\b)?\s*:?\s*\**\s*(?P<value>[^\n]{1,200})",
)
_ANSWER_TAIL_CHARS = 600
_LAST_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?")
_PRINT_EXPRESSION = re.compile(r"print\(([\d\s+\-*/().%]{1,64})\)\s*\Z")
_SENTENCE_END = re.compile(r"[.!?](?:\s|\Z)")
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]{1,40})\}\{([^{}]{1,40})\}")
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]{0,80})\}")
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)\Z")
_NUMBER_WITH_UNIT = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?)(?=[\s.,;!]|\Z)")
_ANSWER_KEYS = ("answer", "final_answer", "result", "value", "output", "solution")


def final_answer(text: str) -> str | None:
    """The normalised final answer, or ``None`` where none can be found.

    Tried in this order: ``\\boxed{}``, ``<answer>``, ``####``, the ``answer`` key of a JSON object, the value of
    ``print(<literal arithmetic>)`` (computed here from the parsed literals, never executed), "the answer is ...",
    a text that is short enough to be an answer itself, the last number. Numbers are normalised (``1,200.0`` and
    ``1200`` are equal), the rest is lower case with single spaces. Never raises.
    """
    try:
        return _final_answer(text)
    except Exception:
        return None


def _final_answer(text: str) -> str | None:
    if len(text) > PARSE_CHARS:
        text = text[-PARSE_CHARS:]
    text = text.strip()
    if not text:
        return None
    if "\\boxed{" in text:
        boxed = _braced(text, text.rfind("\\boxed{") + len("\\boxed{"))
        if boxed is not None:
            return normalise_answer(boxed)
    at = text.rfind("<answer>")
    if at >= 0:
        end = text.find("</answer>", at)
        return normalise_answer(text[at + 8 : end if end >= 0 else at + 208])
    at = text.rfind("####")
    if at >= 0:
        return normalise_answer(text[at + 4 :].split("\n", 1)[0])
    if text[0] == "{":
        value = _json_answer(text)
        if value is not None:
            return normalise_answer(value)
    tail = text[-_ANSWER_TAIL_CHARS:]
    if tail[-1] == ")":
        printed = _PRINT_EXPRESSION.search(tail)
        if printed is not None:
            value = _arithmetic(printed.group(1).strip())
            if value is not None:
                return normalise_answer(value)
    at = tail.lower().rfind("answer")
    if at >= 0:
        found = _ANSWER_IS.match(tail, at)
        if found is not None:
            value = found.group("value").strip().strip("*$ ")
            number = _NUMBER_WITH_UNIT.match(value)
            if number is not None:
                return normalise_answer(number.group())
            sentence = _SENTENCE_END.search(value)
            return normalise_answer(value[: sentence.start()] if sentence else value)
    if len(text) <= 24 and "\n" not in text and text.count(" ") < 2 and "=" not in text:
        return normalise_answer(text)
    for reach in (120, 2_000):
        numbers = _LAST_NUMBER.findall(text[-reach:])
        if numbers:
            return normalise_answer(numbers[-1])
        if reach >= len(text):
            break
    return None


def normalise_answer(answer: str) -> str | None:
    """One spelling for equal answers: numbers without separators and trailing zeros, words lower case. ``None`` when
    nothing is left."""
    answer = answer[:200].strip()
    if "\\" in answer:
        answer = _FRACTION.sub(r"\1/\2", answer)
        answer = _TEXT_COMMAND.sub(r"\1", answer)
        answer = answer.replace("\\$", "").replace("\\%", "").replace("\\,", "").replace("\\!", "")
    answer = " ".join(answer.split()).strip("$€£%*`\"' ").rstrip(".;,!").strip()
    if not answer:
        return None
    plain = answer.replace(",", "").replace(" ", "")
    if _PLAIN_NUMBER.match(plain):
        if "." in plain:
            plain = plain.rstrip("0").rstrip(".")
        sign = "-" if plain.startswith("-") else ""
        plain = plain.lstrip("+-").lstrip("0") or "0"
        if plain.startswith("."):
            plain = "0" + plain
        return "0" if plain == "0" else sign + plain
    return answer.lower()


def _braced(text: str, begin: int) -> str | None:
    depth = 1
    for at in range(begin, min(len(text), begin + 400)):
        mark = text[at]
        if mark == "{":
            depth += 1
        elif mark == "}":
            depth -= 1
            if depth == 0:
                return text[begin:at]
    return None


def _json_answer(text: str) -> str | None:
    if not any(key in text for key in _ANSWER_KEYS):
        return None
    value = json.JSONDecoder().raw_decode(text)[0]
    for key in _ANSWER_KEYS:
        if isinstance(value, dict) and key in value:
            found = value[key]
            return found if isinstance(found, str) else json.dumps(found)
    return None


_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def _arithmetic(expression: str) -> str | None:
    if "**" in expression:
        return None
    try:
        value = _value(syntax.parse(expression, mode="eval").body)
        return str(int(value)) if value == int(value) else repr(value)
    except (ArithmeticError, SyntaxError, ValueError):
        return None


def _value(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        result: int | float = _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
        return result
    raise ValueError("not literal arithmetic")


# --- modes ----------------------------------------------------------------------------------------------------

_CLOSING_TAG = re.compile(r"</([A-Za-z][\w:.-]{0,40})\s{0,3}>")
_LATEX = re.compile(
    r"\\boxed|\\\(|\\\[|\\begin\{|\\[dt]?frac\{|\\(?:sqrt|sum|text|cdot|times|left|mathrm|mathbf)\b"
    r"|\$\$|\$[^$\n]{0,120}[\\^_=][^$\n]{0,120}\$"
)
_LIST_ITEM = re.compile(r"\n[ \t]{0,12}[-*•+\u2013][ \t]+\S")
_STEP_LINE = re.compile(r"\n[ \t]{0,12}\**(?:\(?\d{1,3}[.):](?=\s)|(?i:step)\s{0,2}\d{1,3}\b)")
_STEP_WORD = re.compile(r"tep\s{0,2}\d{1,3}\s{0,2}[:.)=-]")
_STEP_SHOUTED = re.compile(r"TEP\s{0,2}\d{1,3}\s{0,2}[:.)=-]")
_EQUATION_LINE = re.compile(r"[\d\s+\-*/\u00d7\u00f7=().,%^]{3,80}")
_ARITHMETIC_TEXT = re.compile(r"[\s\d+\-\u2212*/\u00d7\u00f7=().,%$€£^:<>≈]+")
_PYTHON_START = re.compile(
    r"""\s*(?:\#|@|\"{3}|'{3}
        |(?:import|from|def|class|async|for|while|if|with|try|return|assert|lambda|print|elif|raise|global)\b
        |[A-Za-z_][\w.]*(?:\[[^\]\n]{0,60}\])?(?:\s*,\s*[A-Za-z_][\w.]*){0,6}\s*(?::\s*[\w\[\], .|]+)?
            (?:=(?!=)|[-+*/%|&^]=|\*\*=|//=|\s+=(?!=)|\s+[-+*/%]=)
        |[A-Za-z_][\w.]*\()""",
    re.VERBOSE,
)
_LETTER = re.compile(r"[^\W\d_]")
_LETTERS = bytes(range(65, 91)) + bytes(range(97, 123)) + b" '" + bytes(range(128, 256))
_CONTROLS = bytes([*range(9), 11, 12, *range(14, 32), 127])


def _is_fenced(text: str) -> bool:
    # One character is found by memchr, ten times quicker than three.
    if "`" in text and "```" in text:
        return True
    return "~" in text and ("\n~~~" in text or text.startswith("~~~"))


def _is_xml(text: str) -> bool:
    at = text.find("</") if "<" in text else -1
    for _ in range(8):
        if at < 0:
            return False
        closing = _CLOSING_TAG.match(text, at)
        if closing is not None:
            opening = "<" + closing.group(1)
            begin = text.find(opening, 0, at)
            if begin >= 0 and text[begin + len(opening)] in "> \t\n":
                return True
        at = text.find("</", at + 2)
    return False


def _is_json(text: str) -> bool:
    if text[0] not in "{[" or _bracket_depth(text) > _MAX_BRACKET_DEPTH:
        return False
    value, end = json.JSONDecoder().raw_decode(text)
    return isinstance(value, dict | list) and 2 * end >= len(text)


def _bracket_depth(text: str) -> int:
    # An upper bound that costs no loop: a nesting of depth d needs d opening brackets in front of the first closing
    # one of its kind; runs of brackets are what makes parsers recurse.
    if text.count("[") + text.count("{") + text.count("(") <= _MAX_BRACKET_DEPTH:
        return 0
    depth = deepest = 0
    for mark in _BRACKET.findall(text):
        if mark in "([{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


_BRACKET = re.compile(r"[()\[\]{}]")
_CONTINUES = re.compile(r"(?:elif|else|except|finally)\b|[)\]}#\s]|\Z")


def _is_python(text: str) -> bool:
    if _PYTHON_START.match(text) is None:
        return False
    head = _python_head(text)
    # A call written with a space, "Yes (probably)", parses as Python and is prose.
    module = _parse_python(head)
    if module is None and head is not text and len(text) <= _PYTHON_WHOLE_CHARS:
        module = _parse_python(text)
    if module is None:
        return False
    return any(_is_code(statement, head) for statement in module.body)


def _python_head(text: str) -> str:
    """The first statements: up to a line at column 0 behind ``_PYTHON_HEAD_CHARS`` characters.

    Parsing costs in proportion to the text, and a completion that was cut off by the token limit still starts as
    valid Python.
    """
    at = text.find("\n", _PYTHON_HEAD_CHARS)
    while at >= 0:
        if _CONTINUES.match(text, at + 1) is None:
            return text[:at]
        at = text.find("\n", at + 1)
    return text


def _parse_python(text: str) -> ast.Module | None:
    if len(text) > _PYTHON_WHOLE_CHARS:
        text = text[:_PYTHON_WHOLE_CHARS]
    if _bracket_depth(text) > _MAX_BRACKET_DEPTH:
        return None
    try:
        tree: ast.Module = syntax.parse(text)
        return tree
    except Exception:
        return None


_STATEMENTS = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Assign,
    ast.AugAssign,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.If,
    ast.With,
    ast.AsyncWith,
    ast.Try,
    ast.Import,
    ast.ImportFrom,
    ast.Return,
)


def _is_code(statement: ast.stmt, text: str) -> bool:
    if isinstance(statement, ast.Expr):
        call = statement.value
        if isinstance(call, ast.Await):
            call = call.value
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name | ast.Attribute | ast.Call):
            return False
        end = call.func.end_col_offset
        line = text.split("\n", call.func.end_lineno or 1)[(call.func.end_lineno or 1) - 1].encode()
        return end is not None and line[end : end + 1] == b"("
    if isinstance(statement, ast.AnnAssign):
        # "Therefore: 7 + 9 = 16" is an annotated assignment to the parser.
        return statement.value is not None and isinstance(
            statement.annotation, ast.Name | ast.Attribute | ast.Subscript
        )
    if isinstance(statement, ast.Assign):
        # A chain such as "x = 7 + 9 = 16" does not parse; "total = 16" does and is code.
        return True
    return isinstance(statement, _STATEMENTS)


def _is_boxed(text: str) -> bool:
    # The usual case first: a search for one word is ten times quicker than the pattern.
    return "\\boxed" in text or (("\\" in text or "$" in text) and _LATEX.search(text) is not None)


def _at_least(pattern: re.Pattern[str], text: str, count: int) -> bool:
    return any(seen >= count for seen, _ in enumerate(pattern.finditer(text), start=1))


def _is_list(text: str) -> bool:
    return "\n" in text and _at_least(_LIST_ITEM, "\n" + text, 2)


def _is_steps(text: str) -> bool:
    if "\n" in text and _at_least(_STEP_LINE, "\n" + text, 2):
        return True
    if _STEP_WORD.search(text) is not None or ("TEP" in text and _STEP_SHOUTED.search(text) is not None):
        return True
    lines = text.split("\n", 21)
    if not 2 <= len(lines) <= 20:
        return False
    return sum("=" in line and _EQUATION_LINE.fullmatch(line) is not None for line in lines) >= 2


def _is_bare(text: str) -> bool:
    if len(text) > 60 or "\n" in text:
        return False
    if _ARITHMETIC_TEXT.fullmatch(text):
        return any(mark.isdigit() for mark in text)
    if len(text) > 40 or not any(mark.isalnum() for mark in text):
        return False
    if any(ord(mark) >= 0x2E80 for mark in text):
        return len(text) <= 6
    words = text.split()
    return len(words) <= 3 and not _is_garbage(text)


def _is_prose(text: str) -> bool:
    return not _is_garbage(text)


def _is_garbage(text: str) -> bool:
    head = text[:600]
    data = head.encode("utf-8", "surrogatepass")
    marks = len(data.translate(None, _LETTERS))
    if 2 * marks > len(data) or 10 * (len(data) - len(data.translate(None, _CONTROLS))) > len(data):
        return True
    if _LETTER.search(head) is None or 5 * head.count("\ufffd") > len(head):
        return True
    # A single unbroken run of ASCII letters is no sentence and no word.
    if len(head) <= 60 or 30 * head.count(" ") > len(head) or not head.isascii():
        return False
    return max(map(len, head.split())) > max(60, len(head) // 2)


_PARSERS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("fenced", _is_fenced),
    ("xml", _is_xml),
    ("json", _is_json),
    ("python", _is_python),
    ("boxed", _is_boxed),
    ("list", _is_list),
    ("steps", _is_steps),
    ("bare", _is_bare),
    ("prose", _is_prose),
)
_MODE_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}\Z")


def _regex_rule(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    def matches(text: str) -> bool:
        return pattern.search(text) is not None

    return matches


@dataclass(frozen=True)
class ModeSet:
    """The format modes of a run: the user's own, then the built-in ones, ``other`` last."""

    names: tuple[str, ...]
    """Mode names in the order in which they are tried."""
    rules: tuple[tuple[str, Callable[[str], bool]], ...]

    @classmethod
    def build(cls, user: Mapping[str, Any] | None = None) -> ModeSet:
        """The modes of ``user`` (name to regular expression, searched, or to a callable) before the built-in ones.

        Raises ``ConfigError`` for a name that is taken or malformed, a regular expression that does not compile, or
        a rule that is neither text nor callable.
        """
        rules: list[tuple[str, Callable[[str], bool]]] = []
        for name, rule in (user or {}).items():
            if not isinstance(name, str) or _MODE_NAME.match(name) is None:
                raise ConfigError(
                    f"Mode name {name!r} is not usable: it becomes part of a metric name. Use lower-case letters, "
                    "digits, '_', '-' or '.', for example my_mode."
                )
            if name in BUILT_IN_MODES:
                raise ConfigError(
                    f"Mode name {name!r} is one of the built-in modes ({', '.join(BUILT_IN_MODES)}). Rename it, for "
                    f"example my_{name}."
                )
            if callable(rule):
                rules.append((name, rule))
            elif isinstance(rule, str):
                try:
                    rules.append((name, _regex_rule(re.compile(rule))))
                except (re.error, OverflowError, RecursionError) as error:
                    raise ConfigError(
                        f"The regular expression of mode {name!r} does not compile: {error}. Got {rule!r}."
                    ) from error
            else:
                raise ConfigError(
                    f"Mode {name!r} must be a regular expression or a callable(text) -> bool, got "
                    f"{type(rule).__name__}."
                )
        return cls(names=(*(name for name, _ in rules), *BUILT_IN_MODES), rules=(*rules, *_PARSERS))

    def index(self, name: str) -> int:
        """Position of a mode in ``names``. Raises ``ConfigError`` for an unknown mode, naming the nearest."""
        if name not in self.names:
            hint = nearest(name, self.names, 0.6)
            raise ConfigError(f"Unknown mode {name!r}.{hint} Known: {', '.join(self.names)}.")
        return self.names.index(name)

    def parse(self, text: str) -> str:
        """The mode of a completion: its reasoning block is stripped, then the first rule that claims the rest.

        Returns one of ``names``; a rule that raises does not claim the text. Never raises.
        """
        return self.parse_part(split_reasoning(text)[1])

    def parse_part(self, part: str) -> str:
        """The mode of one part of a completion (nothing is stripped).

        Reads at most ``PARSE_CHARS`` characters.
        """
        if len(part) > PARSE_CHARS:
            part = part[:PARSE_CHARS]
        part = part.strip()
        for name, rule in self.rules:
            if not part and name in BUILT_IN_MODES:
                return "other"
            try:
                if rule(part):
                    return name
            except Exception:
                continue
        return "other"
