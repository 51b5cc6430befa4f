//! What differs between the two services: their messages, their path, and what a refused message is answered with.

use std::sync::Arc;

use berth_proto::{
    client,
    code::{CloseCode, ErrorCode},
    link::{Link, LogicService, RefusedReason, SchedulerService},
    wire::{self, to_gateway, to_logic},
};

use crate::rpc;

/// One of the two services.
pub trait Dialect: Send + Sync + 'static {
    /// What a gateway says.
    type Up: prost::Message + Clone + 'static;
    /// What it is told.
    type Down: prost::Message + 'static;
    /// How several are sent at once.
    type UpBatch: prost::Message + Default + Send + 'static;
    /// How several are sent at once.
    type DownBatch: prost::Message + Default + Send + 'static;
    /// The role's service trait.
    type Service: ?Sized + Send + Sync + 'static;

    /// The gRPC path.
    const PATH: &'static str;
    /// The role, for logs.
    const ROLE: &'static str;

    fn up_batch(messages: Vec<Self::Up>) -> Self::UpBatch;
    fn up_messages(batch: Self::UpBatch) -> Vec<Self::Up>;
    fn down_batch(messages: Vec<Self::Down>) -> Self::DownBatch;
    fn down_messages(batch: Self::DownBatch) -> Vec<Self::Down>;
    fn attach(
        service: &Self::Service,
        gateway: wire::AttachGateway,
        down: Arc<dyn Link<Self::Down>>,
    ) -> Arc<dyn Link<Self::Up>>;

    /// Whether `message` must reach the role even when the link breaks first.
    fn outlives_the_link(message: &Self::Up) -> bool;

    /// Whether `message` must not be taken before an earlier one that waits for room.
    fn keeps_its_turn(message: &Self::Up) -> bool;

    /// The time that `message` is answered with, if it is one whose answer proves that all before it was heard.
    fn asks_for_proof(message: &Self::Up) -> Option<i64>;

    /// Lets the answer to such a `message` prove no more than that to an earlier one, of that time.
    fn prove_only(message: &mut Self::Up, said_ms: i64);

    /// That time, if `message` is such an answer.
    fn proves(message: &Self::Down) -> Option<i64>;

    /// The role had no room for `message`: what its sender is told, or the message again where it must not be lost.
    fn refused(message: Self::Up, reason: RefusedReason) -> Result<Option<Self::Down>, Self::Up>;
}

/// Gateway and logic.
pub struct LogicDialect;

impl Dialect for LogicDialect {
    type Up = wire::ToLogic;
    type Down = wire::ToGateway;
    type UpBatch = rpc::ToLogicBatch;
    type DownBatch = rpc::ToGatewayBatch;
    type Service = dyn LogicService;

    const PATH: &'static str = "/berth.rpc.v1.Logic/Attach";
    const ROLE: &'static str = "logic";

    fn up_batch(messages: Vec<wire::ToLogic>) -> rpc::ToLogicBatch {
        rpc::ToLogicBatch { messages }
    }
    fn up_messages(batch: rpc::ToLogicBatch) -> Vec<wire::ToLogic> {
        batch.messages
    }
    fn down_batch(messages: Vec<wire::ToGateway>) -> rpc::ToGatewayBatch {
        rpc::ToGatewayBatch { messages }
    }
    fn down_messages(batch: rpc::ToGatewayBatch) -> Vec<wire::ToGateway> {
        batch.messages
    }
    fn attach(
        service: &dyn LogicService,
        gateway: wire::AttachGateway,
        down: Arc<dyn Link<wire::ToGateway>>,
    ) -> Arc<dyn Link<wire::ToLogic>> {
        service.attach(gateway, down)
    }

    /// A lost close would leave a ghost online; whatever else was said has a sender who hears nothing and says it again.
    fn outlives_the_link(message: &wire::ToLogic) -> bool {
        matches!(message.message, Some(to_logic::Message::Close(_)))
    }

    /// A session announced again after its close would be a ghost.
    fn keeps_its_turn(message: &wire::ToLogic) -> bool {
        Self::outlives_the_link(message) || is_announced_again(message)
    }

    fn asks_for_proof(message: &wire::ToLogic) -> Option<i64> {
        match &message.message {
            Some(to_logic::Message::Renew(renew)) => Some(renew.now_ms),
            _ => None,
        }
    }

    fn prove_only(message: &mut wire::ToLogic, said_ms: i64) {
        if let Some(to_logic::Message::Renew(renew)) = &mut message.message {
            renew.now_ms = said_ms;
        }
    }

    fn proves(message: &wire::ToGateway) -> Option<i64> {
        match &message.message {
            Some(to_gateway::Message::Lease(renewed)) => Some(renewed.said_ms),
            _ => None,
        }
    }

    fn refused(
        message: wire::ToLogic,
        reason: RefusedReason,
    ) -> Result<Option<wire::ToGateway>, wire::ToLogic> {
        // Its client is connected and has done nothing wrong: nobody is there to be told.
        if is_announced_again(&message) {
            return Err(message);
        }
        let why = || {
            ErrorCode::Unavailable.error(match reason {
                RefusedReason::Full => "logic is behind; try again",
                RefusedReason::Closed => "logic is stopping; try again",
            })
        };
        let down = match message.message {
            Some(to_logic::Message::Request(wire::ClientRequest { handle, request, .. })) => {
                let id = request.map_or(0, |request| request.id);
                let result = Some(client::response::Result::Error(why()));
                let response = Some(client::Response { id, result });
                to_gateway::Message::Response(wire::ClientResponse { handle, response })
            }
            Some(to_logic::Message::Open(open)) => to_gateway::Message::Opened(wire::SessionOpened {
                handle: open.handle,
                error: Some(why()),
                close_code: CloseCode::Overloaded.number().into(),
                ..Default::default()
            }),
            // A close that got lost would leave a ghost online; a lease that is not renewed would take everybody offline.
            Some(to_logic::Message::Close(_) | to_logic::Message::Renew(_)) => return Err(message),
            // The next heartbeats ask again.
            Some(to_logic::Message::Refresh(_)) | None => return Ok(None),
        };
        Ok(Some(wire::ToGateway { message: Some(down) }))
    }
}

/// Whether it is of a session that the gateway holds already.
fn is_announced_again(message: &wire::ToLogic) -> bool {
    matches!(&message.message, Some(to_logic::Message::Open(open)) if open.session_epoch != 0)
}

/// Gateway and scheduler.
pub struct SchedulerDialect;

impl Dialect for SchedulerDialect {
    type Up = wire::ToScheduler;
    type Down = wire::FromScheduler;
    type UpBatch = rpc::ToSchedulerBatch;
    type DownBatch = rpc::FromSchedulerBatch;
    type Service = dyn SchedulerService;

    const PATH: &'static str = "/berth.rpc.v1.Scheduler/Attach";
    const ROLE: &'static str = "scheduler";

    fn up_batch(messages: Vec<wire::ToScheduler>) -> rpc::ToSchedulerBatch {
        rpc::ToSchedulerBatch { messages }
    }
    fn up_messages(batch: rpc::ToSchedulerBatch) -> Vec<wire::ToScheduler> {
        batch.messages
    }
    fn down_batch(messages: Vec<wire::FromScheduler>) -> rpc::FromSchedulerBatch {
        rpc::FromSchedulerBatch { messages }
    }
    fn down_messages(batch: rpc::FromSchedulerBatch) -> Vec<wire::FromScheduler> {
        batch.messages
    }
    fn attach(
        service: &dyn SchedulerService,
        gateway: wire::AttachGateway,
        down: Arc<dyn Link<wire::FromScheduler>>,
    ) -> Arc<dyn Link<wire::ToScheduler>> {
        service.attach(gateway, down)
    }

    fn outlives_the_link(_: &wire::ToScheduler) -> bool {
        false
    }

    fn keeps_its_turn(_: &wire::ToScheduler) -> bool {
        false
    }

    fn asks_for_proof(_: &wire::ToScheduler) -> Option<i64> {
        None
    }

    fn prove_only(_: &mut wire::ToScheduler, _: i64) {}

    fn proves(_: &wire::FromScheduler) -> Option<i64> {
        None
    }

    /// The next report replaces a lost one, and a redirect that gets no answer has its own deadline at the gateway.
    fn refused(
        _: wire::ToScheduler,
        _: RefusedReason,
    ) -> Result<Option<wire::FromScheduler>, wire::ToScheduler> {
        Ok(None)
    }
}
