r"""Mathematics in LaTeX: numbers, expressions, equations, sets, intervals, matrices.

    \frac{\sqrt{3}}{3}  equals  1/\sqrt{3};   1 \pm \sqrt{2}  equals  1 - \sqrt{2}, 1 + \sqrt{2}

Most answers are decided by their notation, once everything that only affects the layout is removed.
The others are compared by `math-verify` in a separate process (`sandbox`), whose time is limited in
two ways: texts on which symbolic algebra may run for a long time are not sent at all
(`is_bounded`), and the process is killed after some seconds of processor time. In both cases the
answer is wrong.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache

from evaluation.extraction import residue
from evaluation.extraction.answer_extraction import last_formula
from evaluation.extraction.normalize import (
    MAX_LINE_LENGTH,
    NO_READING,
    Choices,
    Keys,
    Reading,
    normalize,
    plain_text,
    unicode_signs,
)
from evaluation.extraction.number import exact_number, last_number, number_keys, read_number
from evaluation.extraction.sandbox import Calculator

MAX_LENGTH = 300
MAX_DIGITS = 40
MAX_DEPTH = 12
MAX_OPERATIONS = 60
MAX_POWERS = 12
MAX_EXPONENT_DIGITS = 4
MAX_GROUP_POWER = 1_000

_LOOKS = re.compile(
    r"(?<!\\)\\[!,;: ]|~|\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits|quad|qquad)(?![A-Za-z])"
    r"|\$|\\[()\[\]]|\\(?:boxed|fbox)(?![A-Za-z])"
)
_DEGREES = re.compile(
    r"(?:\^? ?\{? ?(?:\\circ|\\degree|°)(?![A-Za-z]) ?\}?|(?<=[0-9]) degrees?\b)"
    # Celsius and Fahrenheit
    r"(?: ?\\(?:text|mathrm) ?\{ *[CF] *\}| ?[CF](?![A-Za-z]))?"
)
_BARE_TOP = re.compile(r"\\[dtc]?frac ?(\\(?:pi|theta|alpha|beta|infty))")
_FRACTION = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_JOINED = re.compile(
    r",? *(?:\\(?:text|mbox|textrm) ?\{ *(?:and|or) *\}|(?<![A-Za-z\\])(?:and|or)\b)"
)
_BOLD = re.compile(r"(?<![^\s(])\*\*(?=\S)|(?<=\S)\*\*(?=[\s.,;:!?)]|$)")
_GROUPING_SPACE = re.compile(r"\\! *|\\(?=\$)|(?<=\\\\)\[[0-9.]+ ?(?:pt|em|ex|mm|cm)\]")
_OR = re.compile(
    r"\\(?:text|mbox|textrm) ?\{ *or *\}|(?<![A-Za-z\\])or\b|\\(?:lor|vee)(?![A-Za-z])"
)
_SIDE = r"[^<>=,\\]+?|[^<>=,]+?"
_SIGN = r"<|>|\\leq(?![A-Za-z])|\\geq(?![A-Za-z])"
_INEQUALITY = re.compile(
    rf"(?:(?P<left>{_SIDE}) ?(?P<one>{_SIGN}) ?)?(?P<name>[A-Za-z])"
    rf"(?: ?(?P<two>{_SIGN}) ?(?P<right>{_SIDE}))?"
)
_UNIT = re.compile(
    r"(?<=[0-9}).]) ?\\(?:text|mbox|textrm|mathrm|operatorname) ?\{ *"
    r"(?![A-Za-z./ ]*\b(?i:is|are|was|were|not|no|too|or|if|unless|when|but|than|more|less|at)\b)"
    r"[A-Za-z][A-Za-z./ ]*(?:\^ ?\{?-?[0-9]\}?)?\}"
    r"(?: ?\^ ?\{?-?[0-9]\}?)?"
)
# Letters that could be variables are units only in a quotient or in pairs.
_PLAIN_UNIT = re.compile(
    r"(?<=[0-9}])(?: ?(?:(?:[mck]m|[km]?g|[mk]?[lL]|mi|ft|m)(?:\^ ?\{?[0-9]\}?)? ?/ ?"
    r"(?:hr?|sec|min|ml|kg|[smlLg])|[mck]m|kg|mg|m[lL]|ft|lbs?|hrs?|mph|kph|kmh)| [mgsLV])"
    r"(?: ?\^ ?\{?[0-9]\}?)?(?=[ .]*$)"
)
_WRAPPED = re.compile(
    r"\\(?:text(?:bf|it|rm|normal)?|math(?:bf|it|rm)|mbox|emph|operatorname|boldsymbol)\*? ?"
    r"\{([^{}\\]*+)\}"
)
_SIGNS = str.maketrans(
    {
        "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "±": r"\pm ", "π": r"\pi ",
        "∞": r"\infty ", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "θ": r"\theta ", "∅": r"\emptyset ",
    }
)  # fmt: skip
_PLAIN_ROOT = re.compile(r"(?:(?<![\\A-Za-z])sqrt|√) ?(?:\(([^()]*)\)|([0-9]+|[a-z]))")
_PLAIN_NAME = re.compile(r"(?<![\\A-Za-z])(pi|theta|infinity|infty)(?![A-Za-z])")
_PLAIN_SIGNS = {"**": "^", "<=": r"\leq ", ">=": r"\geq ", "!=": r"\neq ", "*": r"\cdot "}
_PLAIN_SIGN = re.compile(r"\*\*|<=|>=|!=|\*")
_SAME_NAMES = {r"\le": r"\leq", r"\ge": r"\geq", r"\ne": r"\neq", r"\lbrace": r"\{",
               r"\rbrace": r"\}", r"\varnothing": r"\emptyset"}  # fmt: skip
_SAME_NAME = re.compile(r"\\(?:le|ge|ne|lbrace|rbrace|varnothing)(?![A-Za-z])")

_FREE_SPACE = re.compile(r"(?<![A-Za-z]) +| +(?![A-Za-z])")
_BARE_ARGUMENTS = re.compile(r"\\frac([0-9])([0-9])|\\frac([0-9])(?=\{)|\\sqrt([0-9])")
_BARE_ACCENT = re.compile(r"\\(vec|hat|bar|pmod|overline) ?([0-9A-Za-z])(?![A-Za-z])")
_REPEATING = re.compile(r"(?<![0-9])([0-9]{0,20})\.([0-9]{0,20})\\overline ?\{ ?([0-9]{1,20}) ?\}")
_BARE_BOTTOM = re.compile(r"(\\frac\{[^{}]*\})([0-9])")
_LONE_SCRIPT = re.compile(r"([_^])\{([0-9A-Za-z])\}")
_MEMBER = re.compile(r"^[A-Za-z] ?\\in(?![A-Za-z]) ?")
_NAME = re.compile(
    r"(?![a-z]{2}$)"  # a product of two variables
    r"\\?[A-Za-z]+'?(?:_(?:\{[A-Za-z0-9]+\}|[A-Za-z0-9]+))?(?: ?\([A-Za-z0-9, ]{1,20}\))?"
)
_WORDS = re.compile(r"[A-Za-z]{3,}(?:[ .'-]+[A-Za-z]{2,})*")
_SENTENCE = re.compile(r"(?:(?<![\\A-Za-z])[A-Za-z]{3,}(?![A-Za-z]) ?){4}")
_BASED = re.compile(r"[0-9A-F]+_(?:[0-9]|\{[0-9]+\})")
_PROSE = re.compile(
    r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|log|det|lim|mod|arc|exp)[a-z]*)[A-Za-z]{3,}(?![A-Za-z]*\})"
    r"|[^\W\d_A-Za-z]{2,}"
)
_LONG_WORD = re.compile(r"(?<![\\A-Za-z{])[^\W\d_]{2,}(?!\})")
_FUNCTION = re.compile(r"\\[A-Za-z]+|\{[a-z]*matrix\}|\b(?:sqrt|sin|cos|tan|log|ln|exp|frac|pi)\b")
_IN_FORMULA = re.compile(r"[-+*/^_=<>(\[{\\|!:]")
_LAST_RUN = re.compile(r"((?:\\[A-Za-z]+|[^A-Za-z\\]|(?<![A-Za-z\\])[A-Za-z](?![A-Za-z']))+)$")
_SYMBOL = re.compile(r"\\[A-Za-z]+|[A-Za-z]")
_GREEK = re.compile(
    r"\\(?:(?:var)?(?:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|rho"
    r"|sigma|tau|upsilon|phi|chi|psi|omega)|Gamma|Delta|Theta|Lambda|Xi|Sigma|Upsilon|Phi|Psi|Omega)"
    r"(?![A-Za-z])"
)
_VARIABLE = re.compile(r"[A-Za-z]")
_LISTED = re.compile(r"[,;]")
_EQUATION = re.compile(r"(?<![<>!\\:=])=(?!=)")
_RELATION = re.compile(r"(?<![<>!=])[<>=]|\\(?:leq|geq|neq|in|approx|equiv)(?![A-Za-z])")
_GROUPED = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_TWO_SIGNS = re.compile(r"\\(?:pm|mp|setminus|cup)(?![A-Za-z])")

_LONG_DIGITS = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")
_OPERATION = re.compile(r"[-+*/^_=<>,&!]|\\[A-Za-z]+")
_SCRIPT = re.compile(r"\^ ?(?:\{|\(|-?[0-9]|\\?[A-Za-z])")
_LONG_EXPONENT = re.compile(rf"\^ ?[{{(]* ?[-+]? ?[0-9]{{{MAX_EXPONENT_DIGITS + 1}}}")
# 10^10^10 and 10^{10^10}, but not e^{x^2}.
_TOWER = re.compile(r"\^ ?(?:[{(][^{}]*[0-9})]|-?[0-9]+|\\?[A-Za-z]) ?\^")
_POWER_OF_GROUP = re.compile(r"[)}\]] ?\^ ?[{(]? ?([0-9]+)")
_FACTORIAL = re.compile(r"(?:[0-9]{3}|[)}!]) ?!")
_NEVER_SENT = re.compile(
    r"\\(?:int|iint|oint|sum|prod|lim|det|binom|dbinom|tbinom|choose|frac\{d|partial|ddot|ldots"
    r"|cdots|dots|underbrace|overline|gcd|lcm|pmod|bmod|mod)(?![A-Za-z])|\.\.\.|\bmod\b"
)


def clean_mathematics(text: str) -> str:
    """The formula without delimiters, spacing commands, degrees and units; still as LaTeX."""
    text = unicode_signs(text[:MAX_LINE_LENGTH].replace("`", "").strip().strip("*").strip())
    text = _BOLD.sub("", _GROUPING_SPACE.sub("", text).replace("{,}", ","))
    text = _LOOKS.sub(" ", text.translate(_SIGNS))
    text = _BARE_TOP.sub(r"\\frac{\1}", text)
    text = _REPEATING.sub(_repeating_decimal, text)
    text = _FRACTION.sub(r"\\frac", _SAME_NAME.sub(lambda name: _SAME_NAMES[name[0]], text))
    text = _JOINED.sub(" ,", _as_intervals(text))
    text = _DEGREES.sub("", _PLAIN_UNIT.sub("", _UNIT.sub("", text))).replace(r"\%", "%")
    text = _PLAIN_ROOT.sub(_root, text)
    text = _PLAIN_SIGN.sub(lambda sign: _PLAIN_SIGNS[sign[0]], _PLAIN_NAME.sub(_greek, text))
    text = _WRAPPED.sub(r"\1", text)
    return " ".join(text.split()).rstrip(" .,;").removeprefix("{}")


def _as_intervals(text: str) -> str:
    """`x < 2 or x > 3` as the union of two intervals; any other text is unchanged."""
    parts = _OR.split(text)
    if len(parts) < 2:
        return text
    found = [_INEQUALITY.fullmatch(part.strip(" .")) for part in parts]
    ranges = [one for one in found if one]
    if len(ranges) < len(parts) or len({one["name"] for one in ranges}) > 1:
        return text
    return r" \cup ".join(_interval(one) for one in ranges)


def _interval(found: re.Match[str]) -> str:
    bounds = {"lower": (r"-\infty", False), "upper": (r"\infty", False)}
    for side, sign, is_left in (
        (found["left"], found["one"], True),
        (found["right"], found["two"], False),
    ):
        if side is not None:
            is_lower = is_left == (sign == "<" or sign.startswith(r"\leq"))
            bounds["lower" if is_lower else "upper"] = (side.strip(), sign[0] == "\\")
    (lower, has_lower), (upper, has_upper) = bounds["lower"], bounds["upper"]
    return f"{'[' if has_lower else '('}{lower}, {upper}{']' if has_upper else ')'}"


def _repeating_decimal(found: re.Match[str]) -> str:
    """`0.1\\overline{6}` as `\\frac{15}{90}`."""
    whole, fixed, repeated = found.groups()
    top = int(whole + fixed + repeated) - int(whole + fixed or "0")
    bottom = (10 ** len(repeated) - 1) * 10 ** len(fixed)
    return rf"\frac{{{top}}}{{{bottom}}}"


def _root(root: re.Match[str]) -> str:
    return rf"\sqrt{{{root[1] or root[2]}}}"


def _greek(name: re.Match[str]) -> str:
    return r"\infty " if name[1].startswith("inf") else rf"\{name[1]} "


def read_mathematics(cleaned: str, choices: Choices = ()) -> Reading | None:
    """The formula; a number in its canonical form, so that equal numbers are the same vote.

    Words also give the number that they state: "the volume is 120".
    """
    plain = plain_text(cleaned)
    number = exact_number(plain)
    keys = _keys(cleaned, "bare", "named")
    if number is None and _PROSE.search(cleaned) and any(map(str.isdigit, plain)):
        number = read_number(plain)
        if number and number.keys:
            keys = keys.union(number.keys, (f"bare {key}" for key in _formula_keys(number.shown)))
        else:
            number = None
    return Reading(number.shown if number else cleaned, keys)


def last_mathematics(line: str, choices: Choices) -> Reading | None:
    """The last formula of a line, the line if it is only a formula, or its last number."""
    found = last_formula(line)
    if found is None:
        bare = clean_mathematics(line)
        if bare and not _LONG_WORD.search(_FUNCTION.sub("", bare)) and _IN_FORMULA.search(bare):
            return read_mathematics(bare)
        number = last_number(line, choices)
        run = _LAST_RUN.search(bare) if number is NO_READING else None
        formula = run[1].strip() if run else ""
        return read_mathematics(formula) if _IN_FORMULA.search(formula) else number
    before, formula, after = found
    if residue.NEGATION.search(residue.last_clause(before)) or residue.is_retracted(after):
        return NO_READING
    if any(map(str.isdigit, after)):
        return last_number(after, choices)
    return read_mathematics(clean_mathematics(formula))


def canonical_mathematics(answer: str, choices: Choices = ()) -> str:
    """The LaTeX without surrounding white space."""
    return answer.strip()


def mathematics_keys(canonical: str, choices: Choices = ()) -> Keys:
    """The keys that an answer shares with this truth if their notation alone shows equality."""
    keys = _keys(clean_mathematics(canonical), "named", "bare")
    number = exact_number(plain_text(canonical))
    if number is None or not number.shown.endswith("%"):
        return keys
    return frozenset(key for key in keys if isinstance(key, str)) | number_keys(number.shown)


def _keys(cleaned: str, bare: str, named: str) -> Keys:
    """The formula's notations and value; `x = 5` and `5` share another key, unlike two equations.

    That key begins with `bare` for a formula and with `named` for an equation that names it, and
    for a truth the two are exchanged.
    """
    formula = _exact_part(_MEMBER.sub("", cleaned))
    left, *results = (side.strip() for side in _EQUATION.split(formula))
    if len(results) > 1 and _NAME.fullmatch(left) and results[-1] and not _LISTED.search(formula):
        left, results = left, results[-1:]  # A = \pi r^2 = 4\pi
    if len(results) == 1 and not _NAME.fullmatch(left) and _NAME.fullmatch(results[0]):
        left, results = results[0], [left]  # 5 = x
    if len(results) == 1 and results[0] and _NAME.fullmatch(left):
        values = _formula_keys(results[0])
        writings = [_compact(formula), _compact(f"{left}={results[0]}")]
        return frozenset([*writings, *(f"{named} {key}" for key in values)])
    values = _formula_keys(formula)
    return values.union(f"{bare} {key}" for key in values)


def _exact_part(formula: str) -> str:
    r"""The part of `\frac{1}{3} \approx 0.333` before the approximation, unless it is a name."""
    exact, approximate, _ = formula.partition(r"\approx")
    if not approximate:
        return formula
    if _NAME.fullmatch(exact.strip()):
        return formula.replace(r"\approx", "=", 1)
    return exact.strip() or formula


def _formula_keys(formula: str) -> Keys:
    number = exact_number(plain_text(formula))
    values: Keys = number.keys if number else frozenset()
    if number and "," in formula:
        return values  # a comma in a number does not separate a list
    if _WORDS.fullmatch(formula):
        values |= {normalize(plain_text(formula))}
    return values | {_compact(formula)}


def _compact(formula: str) -> str:
    r"""A single notation of a formula: `\frac 43`, `\frac{4}3` and `\frac{4}{3}` become equal."""
    text = _FREE_SPACE.sub("", _BARE_ACCENT.sub(r"\\\1{\2}", formula)).replace(";", ",")
    text = _BARE_ARGUMENTS.sub(_braced, text)
    text = _BARE_BOTTOM.sub(r"\1{\2}", text)
    text = _LONE_SCRIPT.sub(r"\1\2", text)
    single = re.fullmatch(r"\(([A-Za-z])\)", text)  # an option's letter
    return single[1] if single else text


def _braced(found: re.Match[str]) -> str:
    if found[4]:
        return rf"\sqrt{{{found[4]}}}"
    if found[3]:
        return rf"\frac{{{found[3]}}}"
    return rf"\frac{{{found[1]}}}{{{found[2]}}}"


def same_mathematics(truth: str, found: str) -> bool:
    """Whether two formulas have the same meaning although they are written differently."""
    truth, found = (
        _exact_part(_MEMBER.sub("", clean_mathematics(text))) for text in (truth, found)
    )
    if "=" not in truth + found:
        truth, found = truth.replace(";", ","), found.replace(";", ",")
    if _differ_by_case(truth, found):
        return False
    if exact_number(plain_text(truth)) and exact_number(plain_text(found)):
        return False  # their values have been compared already
    if exact_number(plain_text(truth)) and _has_variable(found):
        return False
    names, others = _variables(truth), _variables(found)
    if names is not None and others is not None and names != others:
        return False  # math-verify drops what it does not know
    if _WORDS.fullmatch(truth) or _SENTENCE.search(found) or _BASED.search(truth + " " + found):
        return False
    if not _RELATION.search(truth) and _EQUATION.search(found):
        result = _stated_result(found)
        if result is None:
            return False
        found = result
    elif not _RELATION.search(truth) and _RELATION.search(found):
        truth, found = found, truth  # math-verify converts only the truth's relation to an interval
    if not (is_bounded(truth) and is_bounded(found)) or not _same_shape(truth, found):
        return False
    return _same_by_algebra(truth, found)


def _has_variable(formula: str) -> bool:
    """Whether a bare formula contains a letter, which math-verify may treat as a unit."""
    letters = frozenset(_VARIABLE.findall(_FUNCTION.sub("", formula)))
    return not _RELATION.search(formula) and bool(letters - {"e", "i"})


def _variables(formula: str) -> frozenset[str] | None:
    """The variables of an expression; None for a relation and for a text with words."""
    bare = _FUNCTION.sub("", formula)
    if _RELATION.search(formula) or re.search("[A-Za-z]{3}", bare):
        return None
    return frozenset(_VARIABLE.findall(bare) + _GREEK.findall(formula)) - {"e", "i"}


def _differ_by_case(truth: str, found: str) -> bool:
    r"""Whether one has a letter that the other only has in the other case: `2A`, `\Pi`."""
    names, others = (frozenset(_SYMBOL.findall(text)) for text in (truth, found))
    return any(
        name.swapcase() in others - names for name in names - others if len(name) == 1
    ) or any(name[:2].swapcase() + name[2:] in others - names for name in names - others)


def _stated_result(equation: str) -> str | None:
    """The right side of `x = 5` or `3 + 4 = 7`; None for an equation that is not solved yet."""
    *lefts, result = (side.strip() for side in _EQUATION.split(equation))
    if "," in equation or ";" in equation:
        return equation
    if _NAME.fullmatch(lefts[0]):
        return result
    if _NAME.fullmatch(result):
        return lefts[0]
    values = [exact_number(plain_text(side)) for side in (lefts[-1], result)]
    if all(values) and values[0] != values[1]:
        return None  # 10 = 5
    unknown = any(_VARIABLE.search(_FUNCTION.sub("", side)) for side in lefts)
    return None if unknown else result


def is_bounded(formula: str) -> bool:
    """Whether comparing the formula takes milliseconds: short, flat, no huge powers, no sums.

    Such a formula has at most `MAX_LENGTH` characters, numbers of `MAX_DIGITS` digits, exponents of
    `MAX_EXPONENT_DIGITS` digits and brackets that are `MAX_DEPTH` deep.
    """
    if len(formula) > MAX_LENGTH or _LONG_DIGITS.search(formula) or _depth(formula) > MAX_DEPTH:
        return False
    if len(_OPERATION.findall(formula)) > MAX_OPERATIONS:
        return False
    if len(_SCRIPT.findall(formula)) > MAX_POWERS or _LONG_EXPONENT.search(formula):
        return False
    if math.prod(map(int, _POWER_OF_GROUP.findall(formula))) > MAX_GROUP_POWER:
        return False  # ((10^99)^99)^99
    unsafe = (_TOWER, _FACTORIAL, _NEVER_SENT)
    return not any(pattern.search(formula) for pattern in unsafe)


def _depth(formula: str) -> int:
    depth = deepest = 0
    for sign in formula:
        depth += (sign in "{([") - (sign in "})]")
        deepest = max(deepest, depth)
    return deepest


def _same_shape(truth: str, found: str) -> bool:
    """Whether lists, sets and equations have equally many members, and a set is not a pair.

    `math-verify` compares member by member and stops at the shorter of two equation lists.
    """
    if {truth[:1], found[:1]} == {"(", "\\"} and {truth[:2], found[:2]} & {r"\{"}:
        return False
    relations = len(_RELATION.findall(truth)), len(_RELATION.findall(found))
    if min(relations) > 0 and relations[0] != relations[1]:
        return False
    if _TWO_SIGNS.search(truth) or _TWO_SIGNS.search(found):
        return True
    return _num_commas(truth) == _num_commas(found) or max(relations) > 0


def _num_commas(formula: str) -> int:
    return _GROUPED.sub("", formula).count(",")


@lru_cache(maxsize=4096)
def _same_by_algebra(truth: str, found: str) -> bool:
    return bool(Calculator.of_this_process().ask({"truth": truth, "found": found}).get("same"))
