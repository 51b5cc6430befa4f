//! A user that sends every message back: `echo http://127.0.0.1:7700 carol` against `berth dev`.

use berth_client::{Client, Event, Options, To, token::DevToken};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(scheduler), Some(user)) = (arguments.next(), arguments.next()) else {
        return Err("usage: echo SCHEDULER USER".into());
    };
    let token = DevToken::new(scheduler.clone(), user.clone());
    let (client, mut events) = Client::connect(Options::new(scheduler, "echo", token)).await?;
    while let Some(event) = events.next().await {
        match event {
            // Our own messages come back to us too.
            Event::Message { message, .. } if message.from != user => {
                let conversation = To::conversation(message.conversation_id);
                client.send(conversation, message.r#type, message.body).await?;
            }
            Event::Stopped(reason) => println!("{reason}"),
            _ => {}
        }
    }
    client.close().await;
    Ok(())
}
