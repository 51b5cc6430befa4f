//! A user or a device is revoked: who is connected is closed, what was issued before is refused everywhere and after every restart,
//! and a new login is welcome.

use std::time::Instant;

use berth_proto::schedule::ScheduleAnswer;
use berth_tests::{
    TestResult,
    device::{Device, gateway_of, hello, schedule_with},
    ensure, figure, fresh,
    http::{self, Answer},
    raw::{Raw, Transport},
    server::{Options, Server},
    tokens::{self, now_ms, user_issued},
    wait,
};
use serde_json::{Value, json};

/// What a device got when it signed in, and may come back with.
struct Login {
    user: String,
    device: &'static str,
    token: String,
    schedule: ScheduleAnswer,
}

impl Login {
    async fn new(
        server: &Server,
        user: &str,
        device: &'static str,
        issued_at_ms: i64,
    ) -> anyhow::Result<Self> {
        let token = user_issued(user, issued_at_ms);
        let answer = schedule_with(&server.at.scheduler, &token, &json!({"deviceId": device})).await?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
        Ok(Self { user: user.to_owned(), device, token, schedule: answer.json()? })
    }

    async fn connect(&self, transport: Transport) -> anyhow::Result<Device> {
        let gateway = gateway_of(&self.schedule, transport)?;
        Device::connect_to(&gateway, transport, &self.schedule.ticket, self.device).await
    }

    /// The code with which each gateway turns its ticket away.
    async fn turned_away(&self, server: &Server) -> TestResult {
        for gateway in &server.at.gateways {
            let mut raw = Raw::connect(Transport::Tcp, gateway).await?;
            raw.send(hello(&self.schedule.ticket, self.device)).await?;
            let ending = raw.ending().await?;
            ensure!(ending.code(Transport::Tcp)? == 4500, "at {gateway}: {ending:?}");
        }
        Ok(())
    }

    /// Its token is good for nothing at any scheduler; a scheduler that has just started hears of it with the first reports.
    async fn not_scheduled(&self, server: &Server) -> TestResult {
        for scheduler in &server.at.schedulers {
            let refused = wait::until("the scheduler refuses the token", || async {
                let answer = schedule_with(scheduler, &self.token, &json!({"deviceId": self.device})).await?;
                Ok((answer.status != 200).then_some(answer))
            });
            let refused: Answer = refused.await?;
            ensure!(refused.status == 401, "{} {}", refused.status, refused.body);
            let detail = refused.value()["detail"].to_string();
            ensure!(detail.contains("revoked") && detail.contains("lost phone"), "{detail}");
        }
        Ok(())
    }
}

async fn back_end(server: &Server, path: &str, body: &Value) -> anyhow::Result<Value> {
    let url = format!("{}/v1/users/{path}", server.at.logic);
    let answer = http::post(&url, Some(tokens::SERVICE_KEY), body).await?;
    ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.body);
    Ok(answer.value())
}

#[tokio::test]
async fn a_revoked_user_is_out_everywhere_until_a_new_login_and_stays_out_over_restarts() -> TestResult {
    let mut server = Server::start(Options::default()).await?;
    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let before = now_ms() - 10_000;
    let phone = Login::new(&server, &alice, "phone", before).await?;
    let laptop = Login::new(&server, &alice, "laptop", before).await?;
    let mut connected = [phone.connect(Transport::Tcp).await?, laptop.connect(Transport::WsJson).await?];
    let mut other = Device::connect(&server.at, Transport::Tcp, &bob, "d").await?;

    let asked = Instant::now();
    let (path, reason) = (format!("{alice}:revoke"), json!({"reason": "lost phone"}));
    let revoking = back_end(&server, &path, &reason);
    let closing = async {
        for (device, transport) in connected.iter_mut().zip([Transport::Tcp, Transport::WsJson]) {
            let ending = device.ending().await?;
            ensure!(ending.code(transport)? == 4500, "{ending:?}");
            let reason = ending.disconnect.map(|disconnect| disconnect.reason).unwrap_or_default();
            ensure!(reason.contains("lost phone"), "{reason}");
        }
        anyhow::Ok(asked.elapsed())
    };
    let (answer, closed) = tokio::join!(revoking, closing);
    let (answer, closed) = (answer?, closed?);
    figure(&format!("user revoked: connected ones closed after {} ms", closed.as_millis()));
    ensure!(answer["closed"] == 2, "{answer}");
    ensure!(other.heartbeat().await.is_ok(), "nobody else is touched");

    for login in [&phone, &laptop] {
        login.turned_away(&server).await?;
        login.not_scheduled(&server).await?;
    }
    let unsaid =
        schedule_with(&server.at.scheduler, &tokens::user(&alice), &json!({"deviceId": "phone"})).await?;
    ensure!(unsaid.status == 401, "a token that does not say when it was issued: {}", unsaid.body);
    let anew = Login::new(&server, &alice, "phone", now_ms()).await?;
    anew.connect(Transport::Tcp).await?.heartbeat().await?;

    // Everything dies at once, so nothing but logic's disk remembers.
    server.restart(&[]).await?;
    let url = format!("{}/v1/users/{alice}/revocations", server.at.logic);
    let shown = http::get(&url, Some(tokens::SERVICE_KEY)).await?.value();
    ensure!(shown["revocations"][0]["notBeforeMs"] == answer["notBeforeMs"], "{shown}");
    for login in [&phone, &laptop] {
        login.turned_away(&server).await?;
        login.not_scheduled(&server).await?;
    }
    let anew = Login::new(&server, &anew.user, "phone", now_ms()).await?;
    anew.connect(Transport::Tcp).await?.heartbeat().await?;

    let restored = back_end(&server, &format!("{alice}:restore"), &json!({})).await?;
    ensure!(restored["restored"] == 1, "{restored}");
    wait::until("the older token is good again", || async {
        Ok(Login::new(&server, &alice, "laptop", before).await.ok())
    })
    .await?
    .connect(Transport::WsProto)
    .await?
    .heartbeat()
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_revoked_device_is_out_and_the_users_other_ones_are_not() -> TestResult {
    let server = Server::start(Options::default()).await?;
    let alice = fresh("alice");
    let before = now_ms() - 10_000;
    let phone = Login::new(&server, &alice, "phone", before).await?;
    let laptop = Login::new(&server, &alice, "laptop", before).await?;
    let mut on_phone = phone.connect(Transport::WsProto).await?;
    let mut on_laptop = laptop.connect(Transport::Tcp).await?;
    let asked = json!({"deviceId": "phone", "reason": "lost phone"});
    let answer = back_end(&server, &format!("{alice}:revoke"), &asked).await?;
    ensure!(answer["closed"] == 1, "{answer}");
    let ending = on_phone.ending().await?;
    ensure!(ending.code(Transport::WsProto)? == 4500, "{ending:?}");
    phone.turned_away(&server).await?;
    phone.not_scheduled(&server).await?;
    on_laptop.heartbeat().await?;
    laptop.connect(Transport::WsJson).await?.heartbeat().await?;
    Login::new(&server, &alice, "laptop", before).await?;
    Login::new(&server, &alice, "phone", now_ms()).await?.connect(Transport::Tcp).await?.heartbeat().await?;
    Ok(())
}
