//! Tests in a process of their own: where nothing else runs, or where the system has few threads to give, or none.

#![cfg_attr(miri, allow(dead_code))]

use std::env;
use std::process::Command;

/// Which test the process is there for.
const THERE: &str = "MICROIO_TEST_ALONE";
const ROOM: &str = "MICROIO_TEST_ROOM";

/// Runs the named test again in a process of its own: `true` there, and `false` here when it has passed there.
pub(crate) fn alone(test: &str) -> bool {
    again(test, &mut Command::new(this_program()))
}

/// As [`alone`], where threads would have stacks that no address space can hold.
pub(crate) fn without_threads(test: &str) -> bool {
    again(test, Command::new(this_program()).env("RUST_MIN_STACK", (1u64 << 46).to_string()))
}

/// As [`alone`], once for each number of threads that there is room for, besides the test's own; there it returns that number.
/// The stacks are large, and the address space ends within one more.
#[cfg(target_os = "linux")]
pub(crate) fn with_room_for_threads(numbers: impl IntoIterator<Item = usize>, test: &str) -> Option<usize> {
    const STACK_KIB: usize = 512 << 10;
    if let Ok(room) = env::var(ROOM) {
        return Some(room.parse().unwrap());
    }
    for room in numbers {
        let address_space = (1 + room) * STACK_KIB + STACK_KIB / 2; // the half is for all the rest
        let mut there = Command::new("sh");
        there.args(["-c", r#"ulimit -v "$0" && exec "$@""#]).arg(address_space.to_string()).arg(this_program());
        there.env("RUST_MIN_STACK", (STACK_KIB << 10).to_string()).env("MALLOC_ARENA_MAX", "1");
        again(test, there.env(ROOM, room.to_string()));
    }
    None
}

fn this_program() -> std::path::PathBuf {
    env::current_exe().unwrap()
}

fn again(test: &str, there: &mut Command) -> bool {
    if env::var(THERE).is_ok_and(|there| there == test) {
        return true;
    }
    there.args([test, "--exact", "--test-threads=1", "--nocapture"]).env(THERE, test);
    // The first backtrace of a process reads its symbols, for seconds on a slow machine: no panic on purpose is to wait for that.
    let output = there.env("RUST_BACKTRACE", "0").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    false
}
