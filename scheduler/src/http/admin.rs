//! The operator's operations, below [`PREFIX`] of the admin port: one table, one key check, one form of answer.

mod drains;
mod gateways;
mod policy;
mod rebalance;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{RawPathParams, Request, State},
    http::Response,
    response::IntoResponse,
    routing::{MethodFilter, MethodRouter, on},
};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::{admin_only, finish, input, peer_ip, problem::Refusal, refuse, request_id};
use crate::{core::Core, metrics::Outcome};

/// Every path here begins with it.
pub(crate) const PREFIX: &str = "/admin/v1";

/// One operation.
pub(super) struct Operation {
    method: MethodFilter,
    /// The method's name, for who lists the operations.
    named: &'static str,
    /// Below [`PREFIX`].
    path: &'static str,
    summary: &'static str,
    /// The longest body, in bytes.
    largest: usize,
    act: fn(Arc<Core>, Asked) -> BoxFuture<'static, Result<Value, Refusal>>,
}

/// What an operation is asked for.
pub(super) struct Asked {
    /// The parameters in its path, in their order.
    parameters: Vec<(String, String)>,
    /// As it came; empty: none.
    body: Bytes,
}

impl Asked {
    /// The parameter of the path by that name.
    fn parameter(&self, name: &str) -> &str {
        let found = self.parameters.iter().find(|(own, _)| own == name);
        found.map_or("", |(_, value)| value)
    }

    /// The body as JSON; one that is empty is as if it had no field.
    fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, Refusal> {
        input::json(if self.body.is_empty() { b"{}" } else { &self.body })
    }
}

/// All of them.
static OPERATIONS: [Operation; 14] = [
    Operation {
        method: MethodFilter::GET,
        named: "GET",
        path: "/",
        summary: "These operations",
        largest: 0,
        act: |_, _| Box::pin(async { Ok(listed()) }),
    },
    Operation {
        method: MethodFilter::GET,
        named: "GET",
        path: "/gateways",
        summary: "Every gateway that this scheduler knows: where it is, how it is, how full it is",
        largest: 0,
        act: |core, _| Box::pin(async move { Ok(gateways::list(&core)) }),
    },
    Operation {
        method: MethodFilter::GET,
        named: "GET",
        path: "/drains",
        summary: "The gateways that are being emptied, and how far each is",
        largest: 0,
        act: |core, _| Box::pin(async move { Ok(drains::list(&core)) }),
    },
    Operation {
        method: MethodFilter::PUT,
        named: "PUT",
        path: "/drains/{gatewayId}",
        summary: "Empties a gateway; with dryRun says what that would do, and changes nothing",
        largest: 4_096,
        act: |core, asked| Box::pin(async move { drains::start(&core, &asked).await }),
    },
    Operation {
        method: MethodFilter::DELETE,
        named: "DELETE",
        path: "/drains/{gatewayId}",
        summary: "Lets a gateway serve again",
        largest: 4_096,
        act: |core, asked| Box::pin(async move { drains::stop(&core, &asked).await }),
    },
    Operation {
        method: MethodFilter::GET,
        named: "GET",
        path: "/policy",
        summary: "The policy in force, what its rules take by now, and which policy each scheduler holds",
        largest: 0,
        act: |core, _| Box::pin(async move { Ok(policy::show(&core)) }),
    },
    Operation {
        method: MethodFilter::POST,
        named: "POST",
        path: "/policy:apply",
        summary: "Puts another policy in force: text, by, note",
        largest: policy::LARGEST,
        act: |core, asked| Box::pin(async move { policy::apply(&core, &asked).await }),
    },
    Operation {
        method: MethodFilter::POST,
        named: "POST",
        path: "/policy:diff",
        summary: "What a policy would change: text",
        largest: policy::LARGEST,
        act: |core, asked| Box::pin(async move { policy::diff(&core, &asked).await }),
    },
    Operation {
        method: MethodFilter::POST,
        named: "POST",
        path: "/policy:rollback",
        summary: "Puts an older policy in force again, under the next version: toVersion (none: the one before), by, note",
        largest: input::MAX_BODY,
        act: |core, asked| Box::pin(async move { policy::rollback(&core, &asked).await }),
    },
    Operation {
        method: MethodFilter::POST,
        named: "POST",
        path: "/policy:resume",
        summary: "Lets a stopped gray rule go on: ruleId, by",
        largest: input::MAX_BODY,
        act: |core, asked| Box::pin(async move { policy::resume(&core, &asked).await }),
    },
    Operation {
        method: MethodFilter::GET,
        named: "GET",
        path: "/moves",
        summary: "How far each gateway is with what it moves: drains, rebalances, sweeps",
        largest: 0,
        act: |core, _| Box::pin(async move { Ok(rebalance::progress(&core)) }),
    },
    Operation {
        method: MethodFilter::PUT,
        named: "PUT",
        path: "/rebalance",
        summary: "Lets the fullest gateways shed connections; with dryRun says how many, and changes nothing",
        largest: 4_096,
        act: |core, asked| Box::pin(async move { rebalance::start(&core, &asked) }),
    },
    Operation {
        method: MethodFilter::DELETE,
        named: "DELETE",
        path: "/rebalance",
        summary: "Ends the rebalance, whichever scheduler it was begun at, and names the gateways that were shedding",
        largest: 0,
        act: |core, _| Box::pin(async move { Ok(rebalance::stop(&core)) }),
    },
    Operation {
        method: MethodFilter::GET,
        named: "GET",
        path: "/policy/history",
        summary: "What was put in force at this scheduler, when, by whom and from where, the newest first",
        largest: 0,
        act: |core, _| Box::pin(async move { Ok(policy::history(&core)) }),
    },
];

/// The routes of the table; whatever else is asked for below [`PREFIX`] is a problem, and needs the key as well.
pub(crate) fn router(core: Arc<Core>) -> Router {
    let mut router = Router::new();
    for operation in &OPERATIONS {
        router = router.route(&format!("{PREFIX}{}", operation.path), route(operation));
    }
    router
        .route(PREFIX, axum::routing::any(unknown))
        .route(&format!("{PREFIX}/{{*rest}}"), axum::routing::any(unknown))
        .method_not_allowed_fallback(unknown)
        .with_state(core)
}

fn route(operation: &'static Operation) -> MethodRouter<Arc<Core>> {
    on(
        operation.method,
        async move |State(core): State<Arc<Core>>, given: RawPathParams, request: Request| {
            let given = given.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            answer(core, Some(operation), given, request).await
        },
    )
}

async fn unknown(State(core): State<Arc<Core>>, request: Request) -> Response<Body> {
    answer(core, None, Vec::new(), request).await
}

/// Checks the key, does what is asked, and answers.
async fn answer(
    core: Arc<Core>,
    operation: Option<&'static Operation>,
    parameters: Vec<(String, String)>,
    request: Request,
) -> Response<Body> {
    let (request_id, peer) = (request_id(request.headers()), peer_ip(&request));
    let asked = format!("{} {}", request.method(), request.uri().path());
    match act(&core, operation, parameters, request, &asked).await {
        Ok(value) => {
            core.metrics.admin(Outcome::Ok);
            finish(Json(value).into_response(), &request_id)
        }
        Err(refusal) => {
            core.metrics.admin(refusal.outcome());
            // A wrong admin key too: somebody is guessing, or has an old one.
            tracing::debug!(request_id, ?peer, asked, %refusal, "an admin request was refused");
            refuse(&request_id, &refusal)
        }
    }
}

async fn act(
    core: &Arc<Core>,
    operation: Option<&'static Operation>,
    parameters: Vec<(String, String)>,
    request: Request,
    asked: &str,
) -> Result<Value, Refusal> {
    admin_only(core, request.headers())?;
    let Some(operation) = operation else {
        return Err(Refusal::NotFound(format!("operation {asked} (GET {PREFIX}/ lists them)")));
    };
    let body = input::body(request.into_body(), operation.largest).await?;
    (operation.act)(Arc::clone(core), Asked { parameters, body }).await
}

fn listed() -> Value {
    let operations = OPERATIONS.iter().map(|operation| {
        json!({
            "method": operation.named,
            "path": format!("{PREFIX}{}", operation.path),
            "summary": operation.summary,
        })
    });
    json!({ "operations": operations.collect::<Vec<_>>() })
}
