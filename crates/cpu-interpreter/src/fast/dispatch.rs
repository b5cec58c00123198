//! How a handler goes on.

/// Goes on with the operation after `op`: a jump in optimised builds.
macro_rules! next {
    ($core:ident, $cache:ident, $op:ident, $rest:ident) => {{
        #[cfg(tail_dispatch)]
        {
            let _ = $op;
            let [op, rest @ ..] = $rest else { return crate::op::Stop::Resolve };
            return (op.run)($core, $cache, op, rest);
        }
        #[cfg(not(tail_dispatch))]
        {
            let _ = ($core, $cache, $op, $rest);
            return crate::op::Stop::Next;
        }
    }};
}

/// The value, or the handler ends with [`crate::core::Core::fault`].
macro_rules! some {
    ($value:expr, $core:ident, $op:ident) => {
        match $value {
            Some(value) => value,
            None => return $core.refused($op),
        }
    };
}

/// A store as the last thing that can fail; then `$commit`, then the next operation.
macro_rules! store {
    ($stored:expr, $core:ident, $cache:ident, $op:ident, $rest:ident, $commit:block) => {{
        if !$stored {
            if !$core.smc {
                return $core.refused($op);
            }
            $commit
            return $core.stored_code($op);
        }
        $commit
        next!($core, $cache, $op, $rest)
    }};
}

/// A generic handler for a size in bytes.
macro_rules! sized {
    ($size:expr, $f:ident $(, $arg:expr)*) => {
        match $size {
            1 => $f::<$({ $arg },)* 1>,
            2 => $f::<$({ $arg },)* 2>,
            4 => $f::<$({ $arg },)* 4>,
            _ => $f::<$({ $arg },)* 8>,
        }
    };
}
