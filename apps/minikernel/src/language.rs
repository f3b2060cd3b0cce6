//! The toy language: what a cell may say, and the interpreter that runs it.
//!
//! ```text
//! cell      = { [ statement ] newline }              a comment is a "#" and the rest of its line
//! statement = [ name "=" ] sum
//! sum       = product { ( "+" | "-" ) product }      "+" also joins two texts
//! product   = operand { ( "*" | "/" ) operand }
//! operand   = number | text | name | name "(" [ sum { "," sum } [ "," ] ] ")" | "-" operand | "(" sum ")"
//! ```
//!
//! A newline inside parentheses is a blank. A cell is parsed as a whole, then run: a syntax error runs nothing.
//! A number is finite, so what is shown reads back. Only nested operands recurse, and how deep they nest is limited.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use microio::{Cancelled, WaitError, checkpoint_if_cancelled, current_cancel_scope};

/// What a program prints to and reads from.
pub(crate) trait Console {
    fn print(&self, text: &str);
    fn warn(&self, text: &str);
    /// A line from the user; blocks until it is there.
    fn input(&self, prompt: &str) -> Result<String, Error>;
}

/// Displayed as a literal that reads back.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// Of an assignment, and of a builtin without a result.
    Nothing,
    Number(f64),
    Text(Rc<str>),
}

impl Value {
    /// As `print` writes it: a text without its quotes.
    pub(crate) fn plain(&self) -> String {
        if let Value::Text(text) = self { text.to_string() } else { self.to_string() }
    }

    fn kind(&self) -> &'static str {
        match self {
            Value::Nothing => "nothing",
            Value::Number(_) => "number",
            Value::Text(_) => "text",
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Nothing => f.write_str("nothing"),
            Value::Number(number) if number.fract() == 0.0 && number.abs() < 1e15 => write!(f, "{}", *number as i64),
            Value::Number(number) => write!(f, "{number:?}"),
            Value::Text(text) => {
                let text = text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n").replace('\t', r"\t");
                write!(f, "\"{text}\"")
            }
        }
    }
}

/// Why a cell ended early. The name is that of the Python exception, the line counts from 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Error {
    pub(crate) name: &'static str,
    pub(crate) message: String,
    pub(crate) line: Option<usize>,
}

impl Error {
    /// An error of the line that runs.
    pub(crate) fn new(name: &'static str, message: impl Into<String>) -> Self {
        Error { name, message: message.into(), line: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.message)
    }
}

impl std::error::Error for Error {}

impl From<Cancelled> for Error {
    fn from(cancelled: Cancelled) -> Self {
        Error::new("KeyboardInterrupt", cancelled.reason.to_string())
    }
}

#[derive(Debug)]
struct Statement {
    line: usize,
    target: Option<Rc<str>>,
    expression: Expression,
}

#[derive(Debug)]
enum Expression {
    Constant(Value),
    Name(Rc<str>),
    /// Operators of one rank, from left to right: one level of the tree, however long.
    Chain(Box<Expression>, Vec<(char, Expression)>),
    Call(Rc<str>, Vec<Expression>),
}

type Parsed = Result<Expression, Error>;

/// How deep operands may nest.
const DEPTH: usize = 100;

/// Recursive descent over the text, a method for each rule of the grammar. It never moves past what it rejects.
struct Parser<'a> {
    rest: &'a str,
    line: usize,
    /// Parentheses.
    open: usize,
    /// Operands.
    depth: usize,
}

impl<'a> Parser<'a> {
    fn new(code: &'a str) -> Self {
        Parser { rest: code, line: 1, open: 0, depth: 0 }
    }

    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        self.line += taken.matches('\n').count();
        self.rest = rest;
        taken
    }

    /// What comes after blanks and comments. None at the end.
    fn peek(&mut self) -> Option<char> {
        loop {
            match self.rest.chars().next() {
                Some('#') => self.take(self.rest.find('\n').unwrap_or(self.rest.len())),
                Some(char) if char.is_whitespace() && (char != '\n' || self.open > 0) => self.take(char.len_utf8()),
                other => return other,
            };
        }
    }

    fn accept(&mut self, symbol: char) -> bool {
        let found = self.peek() == Some(symbol);
        self.take(if found { symbol.len_utf8() } else { 0 });
        found
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T, Error> {
        Err(Error { line: Some(self.line), ..Error::new("SyntaxError", message) })
    }

    fn unexpected<T>(&mut self) -> Result<T, Error> {
        match self.peek() {
            None if self.open > 0 => self.error("'(' was never closed"),
            None | Some('\n') => self.error("unexpected end of the line"),
            Some(char) => self.error(format!("unexpected '{char}'")),
        }
    }

    fn cell(&mut self) -> Result<Vec<Statement>, Error> {
        let mut statements = Vec::new();
        while self.peek().is_some() {
            if !self.accept('\n') {
                statements.push(self.statement()?);
                if !matches!(self.peek(), None | Some('\n')) {
                    return self.unexpected();
                }
            }
        }
        Ok(statements)
    }

    fn statement(&mut self) -> Result<Statement, Error> {
        let line = self.line;
        let (target, expression) = match self.sum()? {
            Expression::Name(name) if self.accept('=') => (Some(name), self.sum()?),
            expression => (None, expression),
        };
        Ok(Statement { line, target, expression })
    }

    fn sum(&mut self) -> Parsed {
        self.chain(['+', '-'], Self::product)
    }

    fn product(&mut self) -> Parsed {
        self.chain(['*', '/'], Self::operand)
    }

    fn chain(&mut self, operators: [char; 2], operand: fn(&mut Self) -> Parsed) -> Parsed {
        let first = operand(self)?;
        let mut rest = Vec::new();
        while let Some(operator) = operators.into_iter().find(|operator| self.accept(*operator)) {
            rest.push((operator, operand(self)?));
        }
        Ok(if rest.is_empty() { first } else { Expression::Chain(first.into(), rest) })
    }

    fn operand(&mut self) -> Parsed {
        let next = self.peek();
        if self.depth == DEPTH {
            return self.error("nested too deeply");
        }
        self.depth += 1;
        let operand = match next {
            Some('0'..='9') => Expression::Constant(self.number()?),
            Some('"') => Expression::Constant(self.text()?),
            Some(char) if is_word(char) => {
                let name = self.take(self.rest.find(|char| !is_word(char)).unwrap_or(self.rest.len()));
                match builtin(name) {
                    _ if self.accept('(') => Expression::Call(name.into(), self.arguments()?),
                    Some(_) => return self.error(format!("'{name}' is a builtin: it can be called, and nothing else")),
                    None => Expression::Name(name.into()),
                }
            }
            _ if self.accept('-') => {
                let zero = Expression::Constant(Value::Number(0.0));
                Expression::Chain(zero.into(), vec![('-', self.operand()?)])
            }
            _ if self.accept('(') => {
                self.open += 1;
                let inner = self.sum()?;
                self.close()?;
                inner
            }
            _ => return self.unexpected(),
        };
        self.depth -= 1;
        Ok(operand)
    }

    fn arguments(&mut self) -> Result<Vec<Expression>, Error> {
        self.open += 1;
        let mut arguments = Vec::new();
        while self.peek() != Some(')') {
            arguments.push(self.sum()?);
            if !self.accept(',') {
                break;
            }
        }
        self.close()?;
        Ok(arguments)
    }

    fn close(&mut self) -> Result<(), Error> {
        if !self.accept(')') {
            return self.unexpected();
        }
        self.open -= 1;
        Ok(())
    }

    fn number(&mut self) -> Result<Value, Error> {
        let after_digits = |text: &'a str| text.trim_start_matches(|char: char| char.is_ascii_digit());
        let mut rest = after_digits(self.rest);
        if let Some(fraction) = rest.strip_prefix('.') {
            rest = after_digits(fraction);
        }
        if let Some(exponent) = rest.strip_prefix(['e', 'E']) {
            rest = after_digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent));
        }
        let literal = &self.rest[..self.rest.len() - rest.len()];
        match literal.parse::<f64>() {
            Ok(number) if number.is_finite() => {
                self.take(literal.len());
                Ok(Value::Number(number))
            }
            _ => self.error(format!("bad number '{literal}'")),
        }
    }

    fn text(&mut self) -> Result<Value, Error> {
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, char)) = chars.next().filter(|(_, char)| *char != '\n') {
            text.push(match char {
                '"' => {
                    self.take(at + 1);
                    return Ok(Value::Text(text.into()));
                }
                '\\' => match chars.next() {
                    Some((_, char @ ('"' | '\\'))) => char,
                    Some((_, 'n')) => '\n',
                    Some((_, 't')) => '\t',
                    _ => return self.error("unknown escape"),
                },
                char => char,
            });
        }
        self.error("unterminated text")
    }
}

fn is_word(char: char) -> bool {
    char == '_' || char.is_alphanumeric()
}

/// Whether a cell can run as it is, could with more lines, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completeness {
    Complete,
    Incomplete,
    Invalid,
}

pub(crate) fn completeness(code: &str) -> Completeness {
    let mut parser = Parser::new(code);
    match parser.cell() {
        Ok(_) => Completeness::Complete,
        Err(_) if parser.open > 0 && parser.peek().is_none() => Completeness::Incomplete,
        Err(_) => Completeness::Invalid,
    }
}

/// Keeps the variables from one cell to the next.
#[derive(Debug, Default)]
pub(crate) struct Interpreter {
    variables: BTreeMap<Rc<str>, Value>,
}

impl Interpreter {
    pub(crate) fn new() -> Self {
        Interpreter::default()
    }

    /// Runs a cell: the value of its last line if that is an expression. Blocks; it ends with a `KeyboardInterrupt` when
    /// the cancel scope that it runs in is cancelled. What the lines before an error did stays done.
    pub(crate) fn run(&mut self, code: &str, console: &dyn Console) -> Result<Value, Error> {
        let mut last = Value::Nothing;
        for Statement { line, target, expression } in Parser::new(code).cell()? {
            let here = |error: Error| Error { line: Some(line), ..error };
            checkpoint_if_cancelled().map_err(|cancelled| here(cancelled.into()))?;
            last = self.evaluate(&expression, console).map_err(here)?;
            if let Some(name) = target {
                self.variables.insert(name, std::mem::replace(&mut last, Value::Nothing));
            }
        }
        Ok(last)
    }

    fn evaluate(&self, expression: &Expression, console: &dyn Console) -> Result<Value, Error> {
        match expression {
            Expression::Constant(value) => Ok(value.clone()),
            Expression::Name(name) => self.variable(name).cloned(),
            Expression::Chain(first, rest) => {
                rest.iter().try_fold(self.evaluate(first, console)?, |left, (operator, right)| {
                    apply(*operator, &left, &self.evaluate(right, console)?)
                })
            }
            Expression::Call(name, arguments) => {
                let Some(builtin) = builtin(name) else {
                    return type_error(format!("cannot call {}", self.variable(name)?.kind()));
                };
                let values = arguments.iter().map(|argument| self.evaluate(argument, console));
                builtin.call(&values.collect::<Result<Vec<_>, _>>()?, console)
            }
        }
    }

    fn variable(&self, name: &str) -> Result<&Value, Error> {
        self.variables.get(name).ok_or_else(|| Error::new("NameError", format!("name '{name}' is not defined")))
    }

    /// The word before the cursor, as a range of characters, and the names that begin with it, sorted.
    pub(crate) fn complete(&self, code: &str, cursor: usize) -> (Range<usize>, Vec<String>) {
        let (range, word, _) = word(code, cursor);
        let names = BUILTINS.iter().map(|builtin| builtin.name).chain(self.variables.keys().map(|name| &**name));
        let mut names: Vec<_> = names.filter(|name| name.starts_with(&word)).map(str::to_owned).collect();
        names.sort();
        (range, names)
    }

    /// What the word stands for that the cursor is in, or at the end of.
    pub(crate) fn inspect(&self, code: &str, cursor: usize) -> Option<String> {
        let (_, word, rest) = word(code, cursor);
        let word = word + &rest;
        let variable = self.variables.get(&*word).map(|value| format!("{word} = {value}"));
        variable.or_else(|| builtin(&word).map(|builtin| format!("{}: {}", builtin.signature, builtin.help)))
    }
}

/// The part of a word before the cursor, as a range of characters and as text, and the part after it.
fn word(code: &str, cursor: usize) -> (Range<usize>, String, String) {
    let chars: Vec<char> = code.chars().collect();
    let (before, after) = chars.split_at(cursor.min(chars.len()));
    let start = before.iter().rposition(|char| !is_word(*char)).map_or(0, |at| at + 1);
    (start..before.len(), before[start..].iter().collect(), after.iter().take_while(|char| is_word(**char)).collect())
}

fn type_error<T>(message: String) -> Result<T, Error> {
    Err(Error::new("TypeError", message))
}

/// How long a text may be.
const LONGEST: usize = 100_000_000;

fn apply(operator: char, left: &Value, right: &Value) -> Result<Value, Error> {
    let number = match (left, operator, right) {
        (Value::Text(left), '+', Value::Text(right)) if left.len() + right.len() > LONGEST => {
            return Err(Error::new("OverflowError", "text too long"));
        }
        (Value::Text(left), '+', Value::Text(right)) => return Ok(Value::Text(format!("{left}{right}").into())),
        (Value::Number(left), '+', Value::Number(right)) => left + right,
        (Value::Number(left), '-', Value::Number(right)) => left - right,
        (Value::Number(left), '*', Value::Number(right)) => left * right,
        (Value::Number(_), '/', Value::Number(0.0)) => return Err(Error::new("ZeroDivisionError", "division by zero")),
        (Value::Number(left), '/', Value::Number(right)) => left / right,
        (_, '+', _) => return type_error(format!("cannot add {} and {}", left.kind(), right.kind())),
        (_, '-', _) => return type_error(format!("cannot subtract {} from {}", right.kind(), left.kind())),
        (_, '*', _) => return type_error(format!("cannot multiply {} by {}", left.kind(), right.kind())),
        _ => return type_error(format!("cannot divide {} by {}", left.kind(), right.kind())),
    };
    if number.is_finite() { Ok(Value::Number(number)) } else { Err(Error::new("OverflowError", "number too large")) }
}

struct Builtin {
    name: &'static str,
    signature: &'static str,
    help: &'static str,
}

#[rustfmt::skip] // a table
const BUILTINS: [Builtin; 7] = [
    Builtin { name: "input", signature: "input(prompt)", help: "asks for a line of text; the prompt may be left out" },
    Builtin { name: "print", signature: "print(value)", help: "writes a line to stdout" },
    Builtin { name: "raise", signature: "raise(text)", help: "ends the cell with a RuntimeError" },
    Builtin { name: "sleep", signature: "sleep(seconds)", help: "waits; an interrupt ends it" },
    Builtin { name: "spin", signature: "spin()", help: "computes until an interrupt ends it" },
    Builtin { name: "stubborn", signature: "stubborn(seconds)", help: "waits; an interrupt does not end it" },
    Builtin { name: "warn", signature: "warn(value)", help: "writes a line to stderr" },
];

fn builtin(name: &str) -> Option<&'static Builtin> {
    BUILTINS.iter().find(|builtin| builtin.name == name)
}

impl Builtin {
    fn call(&self, arguments: &[Value], console: &dyn Console) -> Result<Value, Error> {
        match (self.name, arguments) {
            ("input", []) => return Ok(Value::Text(console.input("")?.into())),
            ("input", [Value::Text(prompt)]) => return Ok(Value::Text(console.input(prompt)?.into())),
            ("print", [value]) => console.print(&(value.plain() + "\n")),
            ("raise", [Value::Text(text)]) => return Err(Error::new("RuntimeError", &**text)),
            ("sleep", [Value::Number(seconds)]) => sleep(duration(*seconds)?)?,
            ("spin", []) => loop {
                checkpoint_if_cancelled()?;
            },
            ("stubborn", [Value::Number(seconds)]) => thread::sleep(duration(*seconds)?),
            ("warn", [value]) => console.warn(&(value.plain() + "\n")),
            _ => {
                let given: Vec<_> = arguments.iter().map(Value::kind).collect();
                return type_error(format!("{} was given ({})", self.signature, given.join(", ")));
            }
        }
        Ok(Value::Nothing)
    }
}

/// A time that every clock can count: up to 30 years.
fn duration(seconds: f64) -> Result<Duration, Error> {
    if !(0.0..=1e9).contains(&seconds) {
        return Err(Error::new("ValueError", format!("cannot wait for {} seconds", Value::Number(seconds))));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn sleep(time: Duration) -> Result<(), Error> {
    match current_cancel_scope().map(|scope| scope.wait_blocking(Some(time))) {
        None => thread::sleep(time),
        Some(Ok(cancelled)) => return Err(cancelled.into()),
        Some(Err(WaitError::TimedOut)) => {}
        Some(Err(error)) => return Err(Error::new("RuntimeError", error.to_string())),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use microio::CancelScope;

    use super::*;

    /// Writes down what it is told, and answers with the prompt. What is warned of cancels the cell.
    #[derive(Default)]
    struct Recorder {
        printed: RefCell<String>,
        scope: CancelScope,
    }

    impl Console for Recorder {
        fn print(&self, text: &str) {
            self.printed.borrow_mut().push_str(text);
        }
        fn warn(&self, text: &str) {
            self.scope.cancel(text.trim_end().to_owned());
        }
        fn input(&self, prompt: &str) -> Result<String, Error> {
            Ok(format!("<{prompt}>"))
        }
    }

    /// What was printed, then the value or the error with its line.
    fn run(code: &str) -> String {
        let console = Recorder::default();
        let mut interpreter = Interpreter::new();
        let body = pin!(console.scope.run(async { interpreter.run(code, &console) }));
        let Poll::Ready(Ok(result)) = body.poll(&mut Context::from_waker(Waker::noop())) else { panic!("{code}") };
        let printed = console.printed.take();
        match result {
            Ok(value) => format!("{printed}{value}"),
            Err(error) => format!("{printed}{error} in line {}", error.line.unwrap()),
        }
    }

    #[test]
    fn cells() {
        let open = "(".repeat(DEPTH);
        let cases = [
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
            (r#""a" + "\"\\\n\t#""#, r#""a\"\\\n\t#""#),
            ("1\n\"a", "SyntaxError: unterminated text in line 2"),
            (r#""\q""#, "SyntaxError: unknown escape in line 1"),
            ("größe_1 = 2\ngröße_1", "2"),
            ("1 / 0", "ZeroDivisionError: division by zero in line 1"),
            ("\"a\" + 1", "TypeError: cannot add text and number in line 1"),
            ("\"a\" - 1", "TypeError: cannot subtract number from text in line 1"),
            ("print(1) * 2", "1\nTypeError: cannot multiply nothing by number in line 1"),
            ("1 / \"a\"", "TypeError: cannot divide number by text in line 1"),
            ("-\"a\"", "TypeError: cannot subtract text from number in line 1"),
            ("print(\"a\")\nx", "a\nNameError: name 'x' is not defined in line 2"),
            ("f(print(1))", "NameError: name 'f' is not defined in line 1"),
            ("x = 1\nx(2)", "TypeError: cannot call number in line 2"),
            ("print(1)\nprint = 1", "SyntaxError: 'print' is a builtin: it can be called, and nothing else in line 2"),
            ("1 = 2", "SyntaxError: unexpected '=' in line 1"),
            ("x =", "SyntaxError: unexpected end of the line in line 1"),
            ("print(1 2)", "SyntaxError: unexpected '2' in line 1"),
            ("print(\n1", "SyntaxError: '(' was never closed in line 2"),
            ("1)", "SyntaxError: unexpected ')' in line 1"),
            ("print(1.50)\nprint(\"a\\tb\",)", "1.5\na\tb\nnothing"),
            ("print()", "TypeError: print(value) was given () in line 1"),
            ("sleep(1, \"a\")", "TypeError: sleep(seconds) was given (number, text) in line 1"),
            ("input() + input(\"name: \")", "\"<><name: >\""),
            ("input(1)", "TypeError: input(prompt) was given (number) in line 1"),
            ("raise(\"no\")", "RuntimeError: no in line 1"),
            ("sleep(0)\nstubborn(0.001)", "nothing"),
            ("sleep(-1)", "ValueError: cannot wait for -1 seconds in line 1"),
            ("stubborn(1e300)", "ValueError: cannot wait for 1e300 seconds in line 1"),
            ("warn(\"stop\")\nprint(1)", "KeyboardInterrupt: stop in line 2"),
            ("warn(\"stop\") + spin()", "KeyboardInterrupt: stop in line 1"),
            ("warn(\"stop\") + sleep(60)", "KeyboardInterrupt: stop in line 1"),
            ("warn(\"stop\")\nx", "KeyboardInterrupt: stop in line 2"),
            ("print(warn(\"stop\"), stubborn(0))", "TypeError: print(value) was given (nothing, nothing) in line 1"),
            (&format!("{open}1"), "SyntaxError: nested too deeply in line 1"),
            (&format!("{}1{}", &open[1..], ")".repeat(DEPTH - 1)), "1"),
            (&"-".repeat(1_000_000), "SyntaxError: nested too deeply in line 1"),
            (&format!("{}1", "1 + ".repeat(99_999)), "100000"),
        ];
        for (code, expected) in cases {
            assert_eq!(run(code), expected, "{code}");
        }
    }

    #[test]
    fn a_text_has_an_end() {
        let half = Value::Text("a".repeat(LONGEST / 2 + 1).into());
        assert_eq!(apply('+', &half, &half).unwrap_err().to_string(), "OverflowError: text too long");
    }

    #[test]
    fn complete_cells() {
        for code in ["", "1", "(1)", "x = 1\n", "f(1)"] {
            assert_eq!(completeness(code), Completeness::Complete, "{code}");
        }
        for code in ["(1 +", "print(", "1\nprint(1, # more", "((1)\n", "f(x"] {
            assert_eq!(completeness(code), Completeness::Incomplete, "{code}");
        }
        for code in ["1 +", "\"a", "(\"a", "(1 2", "1)\n(", "(1 + @", "x = = 1", "print = (", &"(".repeat(9999)] {
            assert_eq!(completeness(code), Completeness::Invalid, "{code}");
        }
    }

    #[test]
    fn words() {
        let mut interpreter = Interpreter::new();
        interpreter.run("spam = \"é\"\nsix = 6", &Recorder::default()).unwrap();
        let names = |code, cursor| {
            let (range, names) = interpreter.complete(code, cursor);
            format!("{range:?} {}", names.join(" "))
        };
        assert_eq!(names("\"é\" + spx", 8), "6..8 spam spin");
        assert_eq!(names("s", 99), "0..1 six sleep spam spin stubborn");
        assert_eq!(names("1 + ", 4), "4..4 input print raise six sleep spam spin stubborn warn");
        assert_eq!(names("spoon", 5), "0..5 ");
        let inspect = |code, cursor| interpreter.inspect(code, cursor).unwrap_or_default();
        assert_eq!(inspect("é(six)", 3), "six = 6");
        assert_eq!(inspect("spam", 4), "spam = \"é\"");
        assert_eq!(inspect("sleep(1)", 0), "sleep(seconds): waits; an interrupt ends it");
        assert_eq!(inspect("1 + 2", 4), "");
    }
}
