//! Where bands 2 and 3 say what nobody may be listening for. Goes to `tracing` (feature `tracing`), target `microio`.

macro_rules! log {
    ($level:ident, $($message:tt)*) => {{
        #[cfg(feature = "tracing")]
        tracing::$level!(target: "microio", $($message)*);
        #[cfg(not(feature = "tracing"))]
        let _ = format_args!($($message)*);
    }};
}

pub(crate) use log;
