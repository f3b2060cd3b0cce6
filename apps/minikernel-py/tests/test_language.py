"""The toy language, cell by cell."""

import pytest

from minikernel.language import DEPTH, Error, Interpreter, completeness, show

CELLS = [
    ("", "nothing"),
    (" # 1\n\r\n", "nothing"),
    ("1\n2 # two\n", "2"),
    ("x = 1 + 2\nx", "3"),
    ("x = 1", "nothing"),
    ("1 + 2 * 3 - 8 / 4 / 2", "6"),
    ("-(1 + 2) * -2", "6"),
    ("-0", "0"),
    ("(1 +\n2)", "3"),
    ("1\n+ 2", "SyntaxError: unexpected '+' in line 2"),
    ("7 / 2", "3.5"),
    ("0.1 + 0.2", "0.30000000000000004"),
    ("1e3 + 2.5E-1", "1000.25"),
    ("999999999999999 + 1", "1000000000000000.0"),
    ("1e16", "1e16"),
    ("0.00001", "1e-5"),
    ("1e400", "SyntaxError: bad number '1e400' in line 1"),
    ("1e", "SyntaxError: bad number '1e' in line 1"),
    ("1e308 * 10", "OverflowError: number too large in line 1"),
    ('"a" + "\\"\\\\\\n\\t#"', '"a\\"\\\\\\n\\t#"'),
    ('1\n"a', "SyntaxError: unterminated text in line 2"),
    ('"\\q"', "SyntaxError: unknown escape in line 1"),
    ("größe_1 = 2\ngröße_1", "2"),
    ("1 / 0", "ZeroDivisionError: division by zero in line 1"),
    ('"a" + 1', "TypeError: cannot add text and number in line 1"),
    ('"a" - 1', "TypeError: cannot subtract number from text in line 1"),
    ("print(1) * 2", "1\nTypeError: cannot multiply nothing by number in line 1"),
    ('1 / "a"', "TypeError: cannot divide number by text in line 1"),
    ('-"a"', "TypeError: cannot subtract text from number in line 1"),
    ('print("a")\nx', "a\nNameError: name 'x' is not defined in line 2"),
    ("f(print(1))", "NameError: name 'f' is not defined in line 1"),
    ("x = 1\nx(2)", "TypeError: cannot call number in line 2"),
    ("print(1)\nprint = 1", "SyntaxError: 'print' is a builtin: it can be called, and nothing else in line 2"),
    ("1 = 2", "SyntaxError: unexpected '=' in line 1"),
    ("x =", "SyntaxError: unexpected end of the line in line 1"),
    ("print(1 2)", "SyntaxError: unexpected '2' in line 1"),
    ("print(\n1", "SyntaxError: '(' was never closed in line 2"),
    ("1)", "SyntaxError: unexpected ')' in line 1"),
    ('print(1.50)\nprint("a\\tb",)', "1.5\na\tb\nnothing"),
    ("print()", "TypeError: print(value) was given () in line 1"),
    ('sleep(1, "a")', "TypeError: sleep(seconds) was given (number, text) in line 1"),
    ('input() + input("name: ")', '"<><name: >"'),
    ("input(1)", "TypeError: input(prompt) was given (number) in line 1"),
    ('raise("no")', "RuntimeError: no in line 1"),
    ("sleep(0)\nstubborn(0.001)", "nothing"),
    ("sleep(-1)", "ValueError: cannot wait for -1 seconds in line 1"),
    ("stubborn(1e300)", "ValueError: cannot wait for 1e300 seconds in line 1"),
    ('warn("stop")\nprint(1)', "KeyboardInterrupt: stop in line 2"),
    ('warn("stop") + spin()', "KeyboardInterrupt: stop in line 1"),
    ('warn("stop") + sleep(60)', "KeyboardInterrupt: stop in line 1"),
    ('warn("stop")\nx', "KeyboardInterrupt: stop in line 2"),
    ('print(warn("stop"), stubborn(0))', "TypeError: print(value) was given (nothing, nothing) in line 1"),
    ("(" * DEPTH + "1", "SyntaxError: nested too deeply in line 1"),
    ("(" * (DEPTH - 1) + "1" + ")" * (DEPTH - 1), "1"),
    ("-" * 1_000_000, "SyntaxError: nested too deeply in line 1"),
    ("1 + " * 99_999 + "1", "100000"),
]


class Scope:
    reason: str | None = None

    @property
    def cancelled(self) -> bool:
        return self.reason is not None

    def wait(self, timeout: float) -> bool:
        assert self.cancelled or timeout == 0
        return self.cancelled


class Recorder:
    """Writes down what it is told, and answers with the prompt. What is warned of cancels the cell."""

    def __init__(self) -> None:
        self.printed = ""
        self.scope = Scope()

    def print(self, text: str) -> None:
        self.printed += text

    def warn(self, text: str) -> None:
        self.scope.reason = text.rstrip()

    def input(self, prompt: str) -> str:
        return f"<{prompt}>"


@pytest.mark.parametrize(("code", "expected"), CELLS, ids=range(len(CELLS)))
def test_cell(code: str, expected: str) -> None:
    """What was printed, then the value or the error with its line."""
    console = Recorder()
    try:
        result = show(Interpreter().run(code, console))
    except Error as error:
        result = f"{error} in line {error.line}"
    assert console.printed + result == expected


def test_a_text_has_an_end() -> None:
    interpreter = Interpreter()
    interpreter.run("\n".join(['x = "a"'] + ["x = x + x"] * 26), Recorder())
    with pytest.raises(Error, match="OverflowError: text too long"):
        interpreter.run("x + x", Recorder())


def test_completeness() -> None:
    for code in ["", "1", "(1)", "x = 1\n", "f(1)"]:
        assert completeness(code) == "complete", code
    for code in ["(1 +", "print(", "1\nprint(1, # more", "((1)\n", "f(x"]:
        assert completeness(code) == "incomplete", code
    for code in ["1 +", '"a', '("a', "(1 2", "1)\n(", "(1 + @", "x = = 1", "print = (", "(" * 9999]:
        assert completeness(code) == "invalid", code


def test_words() -> None:
    interpreter = Interpreter()
    interpreter.run('spam = "é"\nsix = 6', Recorder())
    assert interpreter.complete('"é" + spx', 8) == (range(6, 8), ["spam", "spin"])
    assert interpreter.complete("s", 99) == (range(1), ["six", "sleep", "spam", "spin", "stubborn"])
    everything = ["input", "print", "raise", "six", "sleep", "spam", "spin", "stubborn", "warn"]
    assert interpreter.complete("1 + ", 4) == (range(4, 4), everything)
    assert interpreter.complete("spoon", 5) == (range(5), [])
    assert interpreter.inspect("é(six)", 3) == "six = 6"
    assert interpreter.inspect("spam", 4) == 'spam = "é"'
    assert interpreter.inspect("sleep(1)", 0) == "sleep(seconds): waits; an interrupt ends it"
    assert interpreter.inspect("1 + 2", 4) is None
