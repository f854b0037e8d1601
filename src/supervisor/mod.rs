//! supervisord over XML-RPC on its unix socket.
