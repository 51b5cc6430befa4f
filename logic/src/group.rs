//! Groups as the back-end API sees them: create or replace, add, remove, read.

use berth_proto::{client, code::ErrorCode};

use crate::context::Context;

/// Members of one page of [`get`], at most.
pub(crate) const PAGE: usize = 1000;

/// A group after a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) group_id: String,
    pub(crate) conversation_id: u64,
    pub(crate) member_count: u64,
    /// In order of their ids, from [`get`] only: those after the one asked for. As many as asked for: there may be more,
    /// after the last of these.
    pub(crate) members: Vec<String>,
}

/// Creates a group, or makes these its members. The same again changes nothing; a call that was cut off is repeated by
/// its caller and goes on where it stood.
///
/// # Errors
/// INVALID_ARGUMENT for a bad id, FAILED_PRECONDITION at a limit, UNAVAILABLE when the store fails.
pub(crate) async fn put(
    _context: &Context,
    _group_id: &str,
    _members: Vec<String>,
) -> Result<Group, client::Error> {
    Err(ErrorCode::Unimplemented.error("groups are not built yet"))
}

/// Adds members; those who are in it already stay as they are.
///
/// # Errors
/// As [`put`]; NOT_FOUND where there is no such group.
pub(crate) async fn add(
    _context: &Context,
    _group_id: &str,
    _members: Vec<String>,
) -> Result<Group, client::Error> {
    Err(ErrorCode::Unimplemented.error("groups are not built yet"))
}

/// Removes members; those who are not in it are passed over. A member who leaves by himself is removed the same way.
///
/// # Errors
/// As [`add`].
pub(crate) async fn remove(
    _context: &Context,
    _group_id: &str,
    _members: Vec<String>,
) -> Result<Group, client::Error> {
    Err(ErrorCode::Unimplemented.error("groups are not built yet"))
}

/// A group and a page of its members: at most `limit` (bounded by [`PAGE`]) after `after`.
///
/// # Errors
/// NOT_FOUND where there is no such group, INVALID_ARGUMENT for a bad id, UNAVAILABLE when the store fails.
pub(crate) async fn get(
    _context: &Context,
    _group_id: &str,
    _after: Option<String>,
    _limit: usize,
) -> Result<Group, client::Error> {
    Err(ErrorCode::Unimplemented.error("groups are not built yet"))
}
