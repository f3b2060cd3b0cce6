//! Tests of `src/error.rs`.

use std::error::Error;
use std::fmt;
use std::io;
use std::num::ParseIntError;
use std::panic::panic_any;

use microio::{ActorCore, CancelScope, Cancelled, Failure, Mailbox, Panic, Reason, WaitError};

use crate::support::ready;

#[derive(Debug)]
struct Layer(&'static str, Option<Box<Layer>>);

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Error for Layer {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.1.as_deref().map(|layer| layer as _)
    }
}

fn three_layers() -> Failure {
    Layer("top", Some(Box::new(Layer("middle", Some(Box::new(Layer("root", None))))))).into()
}

#[test]
fn a_failure_is_one_error_that_its_clones_share() {
    let failure = Failure::from(io::Error::other("end of file"));
    let clone = failure.clone();
    assert!(failure.ptr_eq(&clone));
    assert!(!failure.ptr_eq(&Failure::from(io::Error::other("end of file"))), "equal text is not the same failure");
    assert_eq!(clone.downcast_ref::<io::Error>().unwrap().to_string(), "end of file");
    assert!(clone.downcast_ref::<ParseIntError>().is_none());
    assert!(Failure::msg("text").downcast_ref::<io::Error>().is_none());
}

#[test]
fn the_question_mark_makes_a_failure_of_any_error() {
    fn port(text: &str) -> Result<u16, Failure> {
        Ok(text.parse()?)
    }
    assert_eq!(port("80").unwrap(), 80);
    assert!(port("eighty").unwrap_err().downcast_ref::<ParseIntError>().is_some());
}

#[test]
fn plain_display_prints_the_error_and_alternate_display_its_sources_too() {
    assert_eq!(three_layers().to_string(), "top");
    assert_eq!(format!("{:#}", three_layers()), "top: middle: root");
    assert_eq!(format!("{:#}", Failure::msg("alone")), "alone");
}

#[test]
fn a_failure_dereferences_to_the_error_that_it_holds() {
    assert_eq!(three_layers().source().unwrap().to_string(), "middle");
}

/// The shape of a `fn main() -> Result<(), Box<dyn Error>>`: the box prints like the error itself, and keeps its sources.
#[test]
fn a_failure_goes_into_a_boxed_error_by_question_mark() {
    fn plain() -> Result<(), Box<dyn Error>> {
        Err(three_layers())?
    }
    fn sendable() -> Result<(), Box<dyn Error + Send + Sync>> {
        Err(three_layers())?
    }
    for boxed in [plain().unwrap_err(), sendable().unwrap_err()] {
        assert_eq!(boxed.to_string(), "top");
        assert_eq!(boxed.source().unwrap().to_string(), "middle");
        assert!(format!("{boxed:?}").starts_with("Layer("), "{boxed:?}");
    }
}

#[test]
fn a_reason_is_made_from_text_and_prints_as_it() {
    assert!(matches!(Reason::from("literal"), Reason::Requested(text) if text == "literal"));
    assert!(matches!(Reason::from(String::from("owned")), Reason::Requested(text) if text == "owned"));
    assert_eq!(Reason::from("bye").to_string(), "bye");
    assert_eq!(Reason::Closed("reset".into()).to_string(), "reset");
    assert_eq!(Reason::Deadline.to_string(), "deadline passed");
    assert_eq!(Reason::OwnerDropped.to_string(), "owner dropped");
    assert_eq!(Reason::ChildFailed("reader".into(), Failure::msg("eof")).to_string(), "reader failed: eof");
}

#[test]
fn cancelled_says_why_and_where_and_is_an_error() {
    let scope = CancelScope::new();
    scope.cancel("interrupt");
    let line = line!() - 1;
    fn check(scope: &CancelScope) -> Result<(), Failure> {
        Ok(scope.check()?)
    }
    let failure = check(&scope).unwrap_err();
    assert_eq!(failure.to_string(), "cancelled: interrupt");
    let Cancelled { reason, at } = failure.downcast_ref::<Cancelled>().unwrap();
    assert!(matches!(reason, Reason::Requested(text) if text == "interrupt"));
    assert_eq!((at.file(), at.line()), (file!(), line));
}

#[test]
fn wait_errors_print_in_lower_case_without_a_full_stop() {
    assert_eq!(WaitError::TimedOut.to_string(), "timed out");
    let text = WaitError::WouldBlock.to_string();
    assert!(text.starts_with("would block") && !text.ends_with('.'), "{text}");
}

/// What the cause of an actor is whose handler did that.
fn cause_of(handler: impl Fn()) -> Failure {
    let mut actor = ActorCore::new(Mailbox::new());
    actor.submit(());
    let run = actor.run(async |()| {
        handler();
        Ok(())
    });
    ready(run).unwrap_err().cause
}

fn message(failure: &Failure) -> &str {
    failure.downcast_ref::<Panic>().expect("a panic").message()
}

#[test]
fn a_panic_keeps_its_text_whether_literal_or_formatted() {
    assert_eq!(message(&cause_of(|| panic!("a literal"))), "a literal");
    let n = 7;
    let formatted = cause_of(|| panic!("number {n}"));
    assert_eq!(message(&formatted), "number 7");
    assert_eq!(formatted.to_string(), "panicked: number 7");
}

#[test]
fn a_panic_with_a_value_that_is_not_text_says_so() {
    assert_eq!(message(&cause_of(|| panic_any(7u8))), "a value that is not text");
}

/// A payload is a user's value: its drop may panic, with another payload whose drop panics.
#[test]
fn a_payload_that_panics_when_dropped_is_still_one_failure() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic_any(Bomb);
        }
    }
    assert_eq!(message(&cause_of(|| panic_any(Bomb))), "a value that is not text");
}
