"""The toy language: what a cell may say, and the interpreter that runs it.

    cell      = { [ statement ] newline }              a comment is a "#" and the rest of its line
    statement = [ name "=" ] sum
    sum       = product { ( "+" | "-" ) product }      "+" also joins two texts
    product   = operand { ( "*" | "/" ) operand }
    operand   = number | text | name | name "(" [ sum { "," sum } [ "," ] ] ")" | "-" operand | "(" sum ")"

A newline inside parentheses is a blank. A cell is parsed as a whole, then run: a syntax error runs nothing.
A number is finite, so what is shown reads back. Only nested operands recurse, and how deep they nest is limited.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Literal, NoReturn, Protocol, TypeAlias


class Scope(Protocol):
    """What running needs of the cancel scope that it is in."""

    @property
    def cancelled(self) -> bool: ...
    @property
    def reason(self) -> str | None: ...
    def wait(self, timeout: float, /) -> bool: ...


class Console(Protocol):
    """What a program prints to and reads from, and what ends it."""

    @property
    def scope(self) -> Scope: ...
    def print(self, text: str, /) -> None: ...
    def warn(self, text: str, /) -> None: ...
    def input(self, prompt: str, /) -> str:
        """A line from the user; blocks until it is there."""


# None is the value of an assignment, and of a builtin without a result.
Value: TypeAlias = float | str | None

ESCAPES = {'"': '"', "\\": "\\", "n": "\n", "t": "\t"}


def show(value: Value) -> str:
    """A literal that reads back."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        text = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n").replace("\t", r"\t")
        return f'"{text}"'
    if value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return repr(value).replace("e+", "e").replace("e-0", "e-")


def plain(value: Value) -> str:
    """As `print` writes it: a text without its quotes."""
    return value if isinstance(value, str) else show(value)


def kind(value: Value) -> str:
    return "nothing" if value is None else "text" if isinstance(value, str) else "number"


class Error(Exception):
    """Why a cell ended early. The name is that of the Python exception, the line counts from 1."""

    def __init__(self, name: str, message: str, line: int | None = None) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message
        self.line = line


@dataclass(frozen=True)
class Constant:
    value: Value


@dataclass(frozen=True)
class Name:
    name: str


@dataclass(frozen=True)
class Chain:
    """Operators of one rank, from left to right: one level of the tree, however long."""

    first: "Expression"
    rest: list[tuple[str, "Expression"]]


@dataclass(frozen=True)
class Call:
    name: str
    arguments: list["Expression"]


Expression: TypeAlias = Constant | Name | Chain | Call


@dataclass(frozen=True)
class Statement:
    line: int
    target: str | None
    expression: Expression


DEPTH = 100
"""How deep operands may nest: six frames each, within Python's recursion limit."""

BLANKS = re.compile(r"(?:[^\S\n]+|#.*)*")
BLANKS_AND_NEWLINES = re.compile(r"(?:\s+|#.*)*")
NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]*)?")
TEXT = re.compile(r'"((?:[^"\\\n]|\\["\\nt])*)')


class Parser:
    """Recursive descent over the text, a method for each rule of the grammar. It never moves past what it rejects."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.at = 0
        self.line = 1
        self.open = 0  # parentheses
        self.depth = 0  # operands

    def take(self, end: int) -> str:
        taken = self.code[self.at : end]
        self.line += taken.count("\n")
        self.at = end
        return taken

    def peek(self) -> str:
        """What comes after blanks and comments. Empty at the end."""
        blanks = (BLANKS_AND_NEWLINES if self.open else BLANKS).match(self.code, self.at)
        assert blanks  # it matches nothing too
        self.take(blanks.end())
        return self.code[self.at : self.at + 1]

    def accept(self, symbol: str) -> bool:
        found = self.peek() == symbol
        self.take(self.at + found)
        return found

    def error(self, message: str) -> NoReturn:
        raise Error("SyntaxError", message, self.line)

    def unexpected(self) -> NoReturn:
        char = self.peek()
        if not char and self.open:
            self.error("'(' was never closed")
        self.error("unexpected end of the line" if char in ("", "\n") else f"unexpected '{char}'")

    def cell(self) -> list[Statement]:
        statements = []
        while self.peek():
            if not self.accept("\n"):
                statements.append(self.statement())
                if self.peek() not in ("", "\n"):
                    self.unexpected()
        return statements

    def statement(self) -> Statement:
        line = self.line
        expression = self.sum()
        if isinstance(expression, Name) and self.accept("="):
            return Statement(line, expression.name, self.sum())
        return Statement(line, None, expression)

    def sum(self) -> Expression:
        return self.chain("+-", self.product)

    def product(self) -> Expression:
        return self.chain("*/", self.operand)

    def chain(self, operators: str, operand: Callable[[], Expression]) -> Expression:
        first = operand()
        rest = []
        while (operator := self.peek()) and operator in operators:
            self.accept(operator)
            rest.append((operator, operand()))
        return Chain(first, rest) if rest else first

    def operand(self) -> Expression:
        char = self.peek()
        if self.depth == DEPTH:
            self.error("nested too deeply")
        self.depth += 1
        operand: Expression
        if char in tuple("0123456789"):
            operand = Constant(self.number())
        elif char == '"':
            operand = Constant(self.text())
        elif is_word(char):
            name = self.take(word_end(self.code, self.at))
            if self.accept("("):
                operand = Call(name, self.arguments())
            elif name in BUILTINS:
                self.error(f"'{name}' is a builtin: it can be called, and nothing else")
            else:
                operand = Name(name)
        elif self.accept("-"):
            operand = Chain(Constant(0.0), [("-", self.operand())])
        elif self.accept("("):
            self.open += 1
            operand = self.sum()
            self.close()
        else:
            self.unexpected()
        self.depth -= 1
        return operand

    def arguments(self) -> list[Expression]:
        self.open += 1
        arguments = []
        while self.peek() != ")":
            arguments.append(self.sum())
            if not self.accept(","):
                break
        self.close()
        return arguments

    def close(self) -> None:
        if not self.accept(")"):
            self.unexpected()
        self.open -= 1

    def number(self) -> float:
        literal = NUMBER.match(self.code, self.at)
        assert literal  # it begins with a digit
        try:
            number = float(literal[0])
        except ValueError:
            number = float("nan")
        if not isfinite(number):
            self.error(f"bad number '{literal[0]}'")
        self.take(literal.end())
        return number

    def text(self) -> str:
        literal = TEXT.match(self.code, self.at)
        assert literal  # it begins with a quote
        match self.code[literal.end() : literal.end() + 1]:
            case '"':
                self.take(literal.end() + 1)
                return re.sub(r"\\(.)", lambda escape: ESCAPES[escape[1]], literal[1])
            case "\\":
                self.error("unknown escape")
            case _:
                self.error("unterminated text")


def is_word(char: str) -> bool:
    return char == "_" or char.isalnum()


def word_start(code: str, at: int) -> int:
    while at > 0 and is_word(code[at - 1]):
        at -= 1
    return at


def word_end(code: str, at: int) -> int:
    while at < len(code) and is_word(code[at]):
        at += 1
    return at


def completeness(code: str) -> Literal["complete", "incomplete", "invalid"]:
    """Whether a cell can run as it is, could with more lines, or never."""
    parser = Parser(code)
    try:
        parser.cell()
    except Error:
        return "incomplete" if parser.open and not parser.peek() else "invalid"
    return "complete"


class Interpreter:
    """Keeps the variables from one cell to the next."""

    def __init__(self) -> None:
        self.variables: dict[str, Value] = {}

    def run(self, code: str, console: Console) -> Value:
        """Runs a cell: the value of its last line if that is an expression. Blocks; it ends with a `KeyboardInterrupt`
        when the console's scope is cancelled. What the lines before an error did stays done.
        """
        last: Value = None
        for statement in Parser(code).cell():
            try:
                check(console.scope)
                last = self.evaluate(statement.expression, console)
            except Error as error:
                error.line = statement.line
                raise
            if statement.target is not None:
                self.variables[statement.target], last = last, None
        return last

    def evaluate(self, expression: Expression, console: Console) -> Value:
        match expression:
            case Constant(value):
                return value
            case Name(name):
                return self.variable(name)
            case Chain(first, rest):
                left = self.evaluate(first, console)
                for operator, right in rest:
                    left = apply(operator, left, self.evaluate(right, console))
                return left
            case Call(name, arguments):
                if name not in BUILTINS:
                    raise Error("TypeError", f"cannot call {kind(self.variable(name))}")
                return call(name, [self.evaluate(argument, console) for argument in arguments], console)

    def variable(self, name: str) -> Value:
        if name not in self.variables:
            raise Error("NameError", f"name '{name}' is not defined")
        return self.variables[name]

    def complete(self, code: str, cursor: int) -> tuple[range, list[str]]:
        """The word before the cursor, as a range of characters, and the names that begin with it, sorted."""
        end = min(cursor, len(code))
        start = word_start(code, end)
        names = sorted(name for name in [*BUILTINS, *self.variables] if name.startswith(code[start:end]))
        return range(start, end), names

    def inspect(self, code: str, cursor: int) -> str | None:
        """What the word stands for that the cursor is in, or at the end of."""
        cursor = min(cursor, len(code))
        word = code[word_start(code, cursor) : word_end(code, cursor)]
        if word in self.variables:
            return f"{word} = {show(self.variables[word])}"
        return ": ".join(BUILTINS[word]) if word in BUILTINS else None


LONGEST = 100_000_000  # characters that a text may have


def apply(operator: str, left: Value, right: Value) -> Value:
    match left, operator, right:
        case str(), "+", str():
            if len(left) + len(right) > LONGEST:
                raise Error("OverflowError", "text too long")
            return left + right
        case float(), "+", float():
            number = left + right
        case float(), "-", float():
            number = left - right
        case float(), "*", float():
            number = left * right
        case float(), "/", 0.0:
            raise Error("ZeroDivisionError", "division by zero")
        case float(), "/", float():
            number = left / right
        case _, "+", _:
            raise Error("TypeError", f"cannot add {kind(left)} and {kind(right)}")
        case _, "-", _:
            raise Error("TypeError", f"cannot subtract {kind(right)} from {kind(left)}")
        case _, "*", _:
            raise Error("TypeError", f"cannot multiply {kind(left)} by {kind(right)}")
        case _:
            raise Error("TypeError", f"cannot divide {kind(left)} by {kind(right)}")
    if not isfinite(number):
        raise Error("OverflowError", "number too large")
    return number


# Each with its signature and what it does.
BUILTINS = {
    "input": ("input(prompt)", "asks for a line of text; the prompt may be left out"),
    "print": ("print(value)", "writes a line to stdout"),
    "raise": ("raise(text)", "ends the cell with a RuntimeError"),
    "sleep": ("sleep(seconds)", "waits; an interrupt ends it"),
    "spin": ("spin()", "computes until an interrupt ends it"),
    "stubborn": ("stubborn(seconds)", "waits; an interrupt does not end it"),
    "warn": ("warn(value)", "writes a line to stderr"),
}


def call(name: str, arguments: list[Value], console: Console) -> Value:
    match name, arguments:
        case "input", []:
            return console.input("")
        case "input", [str(prompt)]:
            return console.input(prompt)
        case "print", [value]:
            console.print(plain(value) + "\n")
        case "raise", [str(text)]:
            raise Error("RuntimeError", text)
        case "sleep", [float(seconds)]:
            console.scope.wait(duration(seconds))
            check(console.scope)
        case "spin", []:
            while True:
                check(console.scope)
        case "stubborn", [float(seconds)]:
            time.sleep(duration(seconds))
        case "warn", [value]:
            console.warn(plain(value) + "\n")
        case _:
            given = ", ".join(map(kind, arguments))
            raise Error("TypeError", f"{BUILTINS[name][0]} was given ({given})")
    return None


def check(scope: Scope) -> None:
    if scope.cancelled:
        raise Error("KeyboardInterrupt", str(scope.reason))


def duration(seconds: float) -> float:
    """A time that every clock can count: up to 30 years."""
    if not 0 <= seconds <= 1e9:
        raise Error("ValueError", f"cannot wait for {show(seconds)} seconds")
    return seconds
