//! Replays the transcripts of docs/sdk-authors.md, whose form its beginning explains: what a client says and hears, line by line.
//!
//! Frames of one stretch of `<` lines may come in any order, and notifies that are not shown may come at any time: both
//! are true of the protocol. Everything else that was not expected fails.

use std::collections::HashMap;

use anyhow::{Context, bail, ensure};
use berth_proto::{
    client::{ClientFrame, ServerFrame, server_frame::Frame},
    schedule::ScheduleRequest,
};
use serde_json::Value;

use crate::{
    device::{gateway_of, hello, schedule},
    fresh,
    http::{self, Answer},
    raw::{Raw, Transport},
    server::Addresses,
    tokens,
};

/// One fenced block.
#[derive(Debug)]
pub struct Transcript {
    /// Where its first line stands in the document, from 1.
    pub line: usize,
    /// Whether it shows bytes of TCP.
    pub tcp: bool,
    lines: Vec<Line>,
}

#[derive(Debug, PartialEq)]
enum Line {
    Device { user: String, device: String, welcomed: bool },
    Say(Value),
    SayBytes(Vec<u8>),
    Hear(Value),
    Closed(u32),
    Ask { method: String, path: String, body: Value },
    Answered { status: u16, body: Value },
}

/// Every transcript of a Markdown text.
///
/// # Errors
/// Names the line that is of no known form.
pub fn read(markdown: &str) -> anyhow::Result<Vec<Transcript>> {
    let mut found = Vec::new();
    let mut lines = (1..).zip(markdown.lines());
    while let Some((number, line)) = lines.next() {
        let Some(kind) = line.strip_prefix("```transcript") else { continue };
        let block = lines.by_ref().take_while(|(_, line)| *line != "```");
        let said = block.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let lines = said.map(|(number, line)| parse(line).with_context(|| format!("line {number}: {line}")));
        let lines = lines.collect::<anyhow::Result<_>>()?;
        found.push(Transcript { line: number + 1, tcp: kind.trim() == "tcp", lines });
    }
    Ok(found)
}

fn parse(line: &str) -> anyhow::Result<Line> {
    let (mark, rest) = line.split_once(' ').context("no line of a transcript")?;
    let first = rest.split(' ').next().unwrap_or_default();
    let after_first = rest[first.len()..].trim();
    match mark {
        "@" => {
            let mut words = after_first.split(' ');
            let device = words.next().unwrap_or_default().to_owned();
            let welcomed = match words.next() {
                None => false,
                Some("welcomed") => true,
                Some(word) => bail!("{word} is not known"),
            };
            Ok(Line::Device { user: first.to_owned(), device, welcomed })
        }
        ">" if first == "hex" => {
            let bytes = after_first.split(' ').map(|byte| u8::from_str_radix(byte, 16));
            Ok(Line::SayBytes(bytes.collect::<Result<_, _>>()?))
        }
        ">" if ["GET", "POST", "PUT"].contains(&first) => {
            let (path, body) = after_first.split_once(' ').unwrap_or((after_first, "null"));
            Ok(Line::Ask {
                method: first.to_owned(),
                path: path.to_owned(),
                body: serde_json::from_str(body)?,
            })
        }
        ">" => Ok(Line::Say(serde_json::from_str(rest)?)),
        "<" if first == "closed" => Ok(Line::Closed(after_first.parse()?)),
        "<" if first.parse::<u16>().is_ok() => {
            Ok(Line::Answered { status: first.parse()?, body: serde_json::from_str(after_first)? })
        }
        "<" => Ok(Line::Hear(serde_json::from_str(rest)?)),
        _ => bail!("{mark} is no mark"),
    }
}

impl Transcript {
    /// Replays it, its users and groups under names that nobody else has.
    ///
    /// # Errors
    /// At the first line that does not come true.
    pub async fn replay(&self, at: &Addresses, transport: Transport) -> anyhow::Result<()> {
        let mut replay = Replay { names: self.names(), ..Replay::new(at, transport) };
        for (number, line) in (1..).zip(&self.lines) {
            replay.step(line).await.with_context(|| format!("its line {number}: {line:?}"))?;
        }
        for ((user, device), open) in &replay.devices {
            let rest: Vec<_> = open.heard.iter().filter(|frame| frame.get("notify").is_none()).collect();
            ensure!(rest.is_empty(), "{user}'s {device} also heard {rest:?}");
        }
        Ok(())
    }

    fn names(&self) -> HashMap<String, String> {
        let name = |line: &Line| match line {
            Line::Device { user, .. } => Some(user.clone()),
            Line::Ask { path, .. } => Some(path.strip_prefix("/v1/groups/")?.split('/').next()?.to_owned()),
            _ => None,
        };
        self.lines.iter().filter_map(name).map(|name| (name.clone(), fresh(&name))).collect()
    }
}

/// A device's connection.
struct Open {
    raw: Raw,
    ticket: String,
    /// What came and was not yet expected.
    heard: Vec<Value>,
}

struct Replay<'a> {
    at: &'a Addresses,
    transport: Transport,
    names: HashMap<String, String>,
    bound: HashMap<String, Value>,
    devices: HashMap<(String, String), Open>,
    current: (String, String),
    answer: Option<Answer>,
}

impl<'a> Replay<'a> {
    fn new(at: &'a Addresses, transport: Transport) -> Self {
        let (names, bound, devices) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { at, transport, names, bound, devices, current: Default::default(), answer: None }
    }

    async fn step(&mut self, line: &Line) -> anyhow::Result<()> {
        match line {
            Line::Device { user, device, welcomed } => self.turn_to(user, device, *welcomed).await,
            Line::Say(frame) => self.say(frame).await,
            Line::SayBytes(bytes) => self.open()?.raw.send_unframed(bytes).await,
            Line::Hear(expected) => self.hear(expected).await,
            Line::Closed(expected) => {
                let transport = self.transport;
                let code = self.open()?.raw.ending().await?.code(transport)?;
                ensure!(code == *expected, "closed with {code}");
                Ok(())
            }
            Line::Ask { method, path, body } => self.ask(method, path, body).await,
            Line::Answered { status, body } => {
                let answer = self.answer.take().context("no request before it")?;
                ensure!(answer.status == *status, "{} {}", answer.status, answer.body);
                let mut bound = self.bound.clone();
                let same = self.matches(&self.filled(body), &answer.value(), &mut bound);
                ensure!(same, "it was {}", answer.body);
                self.bound = bound;
                Ok(())
            }
        }
    }

    fn open(&mut self) -> anyhow::Result<&mut Open> {
        self.devices.get_mut(&self.current).context("no device was turned to")
    }

    async fn turn_to(&mut self, user: &str, device: &str, welcomed: bool) -> anyhow::Result<()> {
        self.current = (user.to_owned(), device.to_owned());
        if !self.devices.contains_key(&self.current) {
            let request = ScheduleRequest {
                device_id: device.to_owned(),
                transports: vec![self.transport.name().to_owned()],
                ..Default::default()
            };
            let answer = schedule(self.at, &self.names[user], &request).await?;
            let mut raw = Raw::connect(self.transport, &gateway_of(&answer, self.transport)?).await?;
            if welcomed {
                raw.send(hello(&answer.ticket, device)).await?;
                let first = raw.frame().await?;
                ensure!(matches!(first, Frame::Welcome(_)), "instead of welcome: {first:?}");
            }
            self.devices.insert(self.current.clone(), Open { raw, ticket: answer.ticket, heard: Vec::new() });
        }
        let ticket = self.open()?.ticket.clone();
        self.bound.insert("ticket".to_owned(), ticket.into());
        Ok(())
    }

    async fn say(&mut self, frame: &Value) -> anyhow::Result<()> {
        let (frame, json) = (self.filled(frame), self.transport == Transport::WsJson);
        let raw = &mut self.open()?.raw;
        if json {
            return raw.send_bytes(frame.to_string().into_bytes()).await;
        }
        let frame: ClientFrame = serde_json::from_value(frame)?;
        raw.send(frame.frame.context("no kind of frame")?).await
    }

    async fn hear(&mut self, expected: &Value) -> anyhow::Result<()> {
        let expected = self.filled(expected);
        loop {
            let mut bound = self.bound.clone();
            let heard = &self.devices.get(&self.current).context("no device was turned to")?.heard;
            let found = heard.iter().position(|frame| {
                bound.clone_from(&self.bound);
                self.matches(&expected, frame, &mut bound)
            });
            if let Some(found) = found {
                self.bound = bound;
                self.open()?.heard.remove(found);
                return Ok(());
            }
            let open = self.open()?;
            let next = open.raw.frame().await;
            let frame =
                next.with_context(|| format!("heard so far: {}", Value::Array(open.heard.clone())))?;
            open.heard.push(serde_json::to_value(ServerFrame { frame: Some(frame) })?);
        }
    }

    async fn ask(&mut self, method: &str, path: &str, body: &Value) -> anyhow::Result<()> {
        let named: Vec<&str> =
            path.split('/').map(|part| self.names.get(part).map_or(part, String::as_str)).collect();
        let (path, body) = (named.join("/"), self.filled(body));
        let body = (!body.is_null()).then(|| body.to_string());
        let (base, key) = if path.starts_with("/v1/schedule") {
            (&self.at.scheduler, tokens::user(&self.names[&self.current.0]))
        } else {
            (&self.at.logic, self.at.service_key.clone())
        };
        self.answer = Some(http::send(method, &format!("{base}{path}"), Some(&key), body).await?);
        Ok(())
    }

    /// With this replay's names, and the values that were bound.
    fn filled(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => {
                let bound = text.strip_prefix('$').and_then(|name| self.bound.get(name));
                let named = || self.names.get(text).cloned().map(Value::String);
                bound.cloned().or_else(named).unwrap_or_else(|| value.clone())
            }
            Value::Array(items) => items.iter().map(|item| self.filled(item)).collect(),
            Value::Object(fields) => {
                fields.iter().map(|(name, field)| (name.clone(), self.filled(field))).collect()
            }
            _ => value.clone(),
        }
    }

    /// Whether a value is as expected, field for field; binds what it is told to.
    fn matches(&self, expected: &Value, value: &Value, bound: &mut HashMap<String, Value>) -> bool {
        match (expected, value) {
            (Value::String(text), _) if text == "*" => true,
            (Value::String(text), _) if text.starts_with('$') => {
                bound.entry(text[1..].to_owned()).or_insert_with(|| value.clone()) == value
            }
            (Value::Array(expected), Value::Array(items)) => {
                let open = expected.last().is_some_and(|last| last == "…");
                let expected = &expected[..expected.len() - usize::from(open)];
                (expected.len() == items.len() || open && expected.len() < items.len())
                    && expected.iter().zip(items).all(|(expected, item)| self.matches(expected, item, bound))
            }
            (Value::Object(expected), Value::Object(fields)) => {
                expected.len() == fields.len()
                    && expected.iter().all(|(name, expected)| {
                        fields.get(name).is_some_and(|field| self.matches(expected, field, bound))
                    })
            }
            _ => expected == value,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_form_of_line_is_read() {
        let text = "a\n```transcript tcp\n@ alice phone welcomed\n# so\n> hex 00 0a\n> {\"a\":1}\n> POST /v1/x {\"b\":2}\n\
                    < 200 {}\n< {\"c\":3}\n< closed 4500\n```\nb\n";
        let found = read(text).expect("is a transcript");
        assert_eq!((found.len(), found[0].line, found[0].tcp), (1, 3, true));
        let device = Line::Device { user: "alice".into(), device: "phone".into(), welcomed: true };
        let ask = Line::Ask { method: "POST".into(), path: "/v1/x".into(), body: json!({"b": 2}) };
        let expected = [
            device,
            Line::SayBytes(vec![0, 10]),
            Line::Say(json!({"a": 1})),
            ask,
            Line::Answered { status: 200, body: json!({}) },
            Line::Hear(json!({"c": 3})),
            Line::Closed(4500),
        ];
        assert_eq!(found[0].lines, expected);
        for bad in ["nonsense", "@ a b later", "> hex zz", "> {", "< closed x", "= {}"] {
            assert!(read(&format!("```transcript\n{bad}\n```\n")).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_field_more_a_field_less_and_another_value_do_not_match() {
        let at = Addresses::default();
        let replay = Replay::new(&at, Transport::Tcp);
        let mut bound = HashMap::new();
        let expected = json!({"a": "$x", "b": ["*", {"c": "$x"}]});
        assert!(replay.matches(&expected, &json!({"a": "1", "b": [7, {"c": "1"}]}), &mut bound));
        assert_eq!(bound["x"], "1");
        let list = |items: Value| replay.matches(&json!([1, "…"]), &items, &mut HashMap::new());
        assert!(list(json!([1])) && list(json!([1, 2])) && !list(json!([])) && !list(json!([2])));
        for other in [
            json!({"a": "1", "b": [7, {"c": "2"}]}),
            json!({"a": "1", "b": [7, {"c": "1"}], "d": 1}),
            json!({"a": "1"}),
            json!({"a": "1", "b": [7]}),
            json!({"a": "2", "b": [7, {"c": "2"}]}),
        ] {
            assert!(!replay.matches(&expected, &other, &mut bound.clone()), "{other}");
        }
    }
}
