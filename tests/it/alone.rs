//! Tests in a process of their own: where nothing else runs, or where the system has no threads to give.

use std::env;
use std::process::Command;

/// Which test the process is there for.
const THERE: &str = "MICROIO_TEST_ALONE";

/// Runs the named test again in a process of its own: `true` there, and `false` here when it has passed there.
pub(crate) fn alone(test: &str) -> bool {
    again(test, &mut Command::new(this_program()))
}

/// As [`alone`], where threads would have stacks that no address space can hold.
pub(crate) fn without_threads(test: &str) -> bool {
    again(test, Command::new(this_program()).env("RUST_MIN_STACK", (1u64 << 46).to_string()))
}

fn this_program() -> std::path::PathBuf {
    env::current_exe().unwrap()
}

fn again(test: &str, there: &mut Command) -> bool {
    if env::var(THERE).is_ok_and(|there| there == test) {
        return true;
    }
    let output = there.args([test, "--exact", "--test-threads=1", "--nocapture"]).env(THERE, test).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    false
}
