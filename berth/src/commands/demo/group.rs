//! The demo's group: made by the back end, spoken to by two members, heard by all devices of three users.

use anyhow::ensure;
use berth_client::{
    Encoding, Event, To,
    record::{ConversationEvent, SendRequest},
    transport::Transport,
};
use serde_json::json;

use super::{Demo, Device, Failed, PATIENCE, connect, text};

impl Demo {
    /// Alice and Bob, and Carol, who connects for it.
    pub(super) async fn group(
        &mut self,
        phone: &mut Device,
        tablet: &mut Device,
        desk: &mut Device,
    ) -> Result<(), Failed> {
        let found = self.args.back_end.find(&self.args.access.scheduler);
        let back_end = match tokio::time::timeout(PATIENCE, found).await {
            Ok(Ok(back_end)) => back_end,
            Ok(Err(why)) => {
                self.skip("group", format!("{why:#}"));
                return Ok(());
            }
            Err(_) => {
                self.skip("group", "the scheduler does not answer".to_owned());
                return Ok(());
            }
        };
        let (alice, bob) = (self.alice.clone(), self.bob.clone());
        let (carol, name) = (alice.replace("alice", "carol"), alice.replace("alice", "group"));
        let options = self.options(&carol, "watch", Transport::Tcp, Encoding::Proto);
        let mut watch = self.check("third_user", connect(options)).await?;
        let work = async {
            let path = format!("/v1/groups/{name}");
            let made = back_end.call("PUT", &path, &json!({ "members": [alice, bob, carol] })).await?;
            for device in [&mut *phone, &mut *tablet, &mut *desk, &mut watch] {
                let told = device.change().await?;
                ensure!(told.kind == "joined" && told.group_id == name, "told of {told:?}");
            }
            Ok(((), format!("{name} is conversation {}, 3 members know", made["conversationId"])))
        };
        self.check("create_group", work).await?;
        let work = async {
            for number in 1..=2 {
                phone.client.send_request(to_group(&name, number), PATIENCE).await?;
            }
            // Bob answers what he has heard, so that there is one order to expect.
            desk.expect_of(&name, 1..=2).await?;
            desk.client.send_request(to_group(&name, 3), PATIENCE).await?;
            desk.expect_of(&name, 3..=3).await?;
            for device in [&mut *phone, &mut *tablet, &mut watch] {
                device.expect_of(&name, 1..=3).await?;
            }
            Ok(((), "3 messages at 4 devices of 3 users, in one order, none twice".to_owned()))
        };
        self.check("group_message", work).await?;
        let work = async {
            let path = format!("/v1/groups/{name}/members:remove");
            back_end.call("POST", &path, &json!({ "members": [carol] })).await?;
            let told = watch.change().await?;
            ensure!(told.kind == "left", "told of {told:?}");
            let refused = watch.client.send_request(to_group(&name, 4), PATIENCE).await;
            ensure!(refused.is_err(), "who left may still send");
            Ok(((), "who was removed is told and may not send".to_owned()))
        };
        self.check("leave_group", work).await?;
        watch.client.close().await;
        Ok(())
    }
}

impl Device {
    /// The next `conversation` event; other events are passed over.
    async fn change(&mut self) -> anyhow::Result<ConversationEvent> {
        loop {
            if let Event::Conversation { change, .. } = self.next().await? {
                return Ok(change);
            }
        }
    }

    async fn expect_of(&mut self, group: &str, numbers: std::ops::RangeInclusive<u64>) -> anyhow::Result<()> {
        for number in numbers {
            let message = self.message().await?;
            let right = message.group_id == group
                && message.conversation_seq == number
                && text(&message) == body(number);
            ensure!(right, "{message:?} came instead of {number} of {group}");
        }
        Ok(())
    }
}

fn body(number: u64) -> String {
    format!("{number}: hello, all")
}

fn to_group(group: &str, number: u64) -> SendRequest {
    SendRequest {
        client_msg_id: format!("{group}-{number}"),
        to: Some(To::group(group).into()),
        r#type: "text".to_owned(),
        body: body(number).into(),
    }
}
