//! Every limit that more than one role must agree on, each with its reason.

/// Largest frame a client may send, in bytes of payload: a body of [`BODY`] in JSON's base64, and room around it.
pub const CLIENT_FRAME: usize = 64 * 1024;

/// Largest frame a server sends, in bytes of payload.
pub const SERVER_FRAME: usize = 1024 * 1024;

/// Largest message body, in bytes.
pub const BODY: usize = 32 * 1024;

/// A pull or history answer stops before its rows pass this many bytes of protobuf, so that the same answer as JSON
/// (base64 makes 4/3 of a body) stays under [`SERVER_FRAME`].
pub const RESPONSE_ROWS: usize = 600 * 1024;

/// Requests one connection may have in flight.
pub const IN_FLIGHT: usize = 16;

/// Longest user, device, group or gateway id, in bytes.
pub const ID: usize = 64;

/// Longest `client_msg_id`, in bytes.
pub const CLIENT_MSG_ID: usize = 64;

/// Longest message type, in bytes.
pub const MESSAGE_TYPE: usize = 32;

/// Longest platform, app version or region text a client may name, in bytes.
pub const CLIENT_TEXT: usize = 64;

/// Rows a pull, history or conversations request gets when it names no limit.
pub const PAGE_DEFAULT: u32 = 100;

/// Most rows a pull, history or conversations request may ask for.
pub const PAGE_MAX: u32 = 200;

/// Longest cursor of a conversations request, in bytes: two numbers in hexadecimal, and room for more.
pub const CONVERSATIONS_CURSOR: usize = 256;

/// Most users of one presence request.
pub const PRESENCE_USERS: usize = 200;

/// Most conversations one notify lists before it collapses to `sync_all`.
pub const NOTIFY_CONVERSATIONS: usize = 32;

/// Most gateways of one schedule answer.
pub const ENDPOINT_GATEWAYS: usize = 5;

/// Longest ticket, in characters.
pub const TICKET: usize = 2048;

/// The longest wait a server may ask of a client, in milliseconds. A wrong number must not silence a client for weeks.
pub const LONGEST_WAIT_MS: u32 = 5 * 60 * 1_000;

/// A hello must be complete this long after accept, in milliseconds.
pub const HELLO_TIMEOUT_MS: i64 = 10_000;

/// Redirects a client follows in a row.
pub const REDIRECTS: u32 = 3;

/// Used-ticket ids one report carries.
pub const USED_TICKETS: usize = 4096;
