"""A client by somebody else: it knows PROTOCOL.md, `websockets` and nothing of this repository.

Usage: client.py http://scheduler:port
       client.py http://scheduler:port follow TOKEN TOKEN
       client.py http://scheduler:port queue TOKEN...

Alone: alice and bob schedule, connect (one by each subprotocol), talk, pull, acknowledge, read, and lose a connection.
`follow`: two users connect, one by each subprotocol, say so, wait until their gateway sends them elsewhere, and go there.
`queue`: all users ask at once, and whoever is told to wait keeps the place.
Each step prints "ok <step>"; the first that fails ends the program with a traceback and exit code 1.
"""

import asyncio
import base64
import json
import sys
import urllib.error
import urllib.request
import uuid

import websockets

SCHEDULER = sys.argv[1]
PATIENCE = 15  # seconds for any one answer
SENT_ELSEWHERE = 60  # seconds for an operator to empty a gateway
REDIRECTS = 3  # in a row
RUN = uuid.uuid4().hex[:8]
ALICE, BOB = f"alice-{RUN}", f"bob-{RUN}"


def ok(step):
    print(f"ok {step}", flush=True)


def post(path, body, token=None):
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(SCHEDULER + path, json.dumps(body).encode(), headers, method="POST")
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer), answer.headers


class Json:
    """berth.v1.json: text messages, proto3 JSON."""

    subprotocol = "berth.v1.json"

    def __init__(self, socket):
        self.socket = socket

    async def send(self, frame):
        await self.socket.send(json.dumps(frame))

    async def receive(self, within=PATIENCE):
        message = await asyncio.wait_for(self.socket.recv(), within)
        assert isinstance(message, str), message
        frame = json.loads(message)
        assert len(frame) == 1, frame
        return frame


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, value):
    """One protobuf field: bytes, text or a whole number."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def fields(data):
    """Protobuf as {number: [values]}; nested messages stay bytes."""
    out, at = {}, 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = number()
        if key & 7 == 0:
            value = number()
        elif key & 7 == 2:
            length = number()
            value, at = data[at : at + length], at + length
            assert len(value) == length, "cut off"
        else:
            raise AssertionError(f"wire type {key & 7}")
        out.setdefault(key >> 3, []).append(value)
    return out


class Proto:
    """berth.v1.proto: binary messages, as much of client.proto as this program speaks."""

    subprotocol = "berth.v1.proto"

    def __init__(self, socket):
        self.socket = socket

    async def send(self, frame):
        (kind, body), = frame.items()
        if kind == "hello":
            data = field(1, field(2, body["ticket"]) + field(3, body["deviceId"]))
        elif kind == "heartbeat":
            data = field(2, b"")
        else:
            method = {"send": self.send_request, "pull": self.pull_request}
            name = next(name for name in body if name != "id")
            data = field(3, field(1, body["id"]) + method[name](body[name]))
        await self.socket.send(data)

    def send_request(self, send):
        to = field(1, send["to"]["userId"])
        body = base64.b64decode(send["body"])
        return field(2, field(1, send["clientMsgId"]) + field(2, to) + field(3, send["type"]) + field(4, body))

    def pull_request(self, pull):
        return field(3, field(1, pull["afterSeq"]))

    async def receive(self, within=PATIENCE):
        message = await asyncio.wait_for(self.socket.recv(), within)
        assert isinstance(message, bytes), message
        (number, (body,)), = fields(message).items()
        body = fields(body)
        one = lambda of, number, default=0: of.get(number, [default])[0]
        text = lambda of, number: one(of, number, b"").decode()
        if number == 1:
            return {"welcome": {"userId": text(body, 2), "inboxSeq": str(one(body, 5)), "inboxEpoch": str(one(body, 6))}}
        if number == 2:
            return {"heartbeatAck": {"inboxSeq": str(one(body, 1))}}
        if number == 4:
            return {"notify": {"inboxSeq": str(one(body, 1))}}
        if number == 5:
            return {
                "disconnect": {
                    "code": one(body, 1),
                    "retryAfterMs": one(body, 3),
                    "redirect": [
                        {"gatewayId": text(to, 1), "transport": text(to, 2), "url": text(to, 3)}
                        for to in map(fields, body.get(4, []))
                    ],
                    "ticket": text(body, 5),
                }
            }
        answer = {"id": one(body, 1)}
        if 2 in body:
            sent = fields(body[2][0])
            answer["send"] = {"messageId": str(one(sent, 1)), "conversationId": str(one(sent, 2))}
        elif 3 in body:
            answer["pull"] = {"items": [self.item(fields(row)) for row in fields(body[3][0]).get(1, [])]}
        else:
            answer["error"] = {"code": text(fields(body[15][0]), 1)}
        return {"response": answer}

    def item(self, row):
        event = fields(row[2][0])
        out = {"seq": str(row[1][0]), "event": {}}
        if 1 in event:
            message = fields(event[1][0])
            out["event"]["message"] = {
                "messageId": str(message[1][0]),
                "conversationId": str(message[2][0]),
                "conversationSeq": str(message[3][0]),
                "from": message[4][0].decode(),
                "body": base64.b64encode(message.get(7, [b""])[0]).decode(),
            }
        return out


class Client:
    def __init__(self, user, device, codec, token=None):
        self.user, self.device, self.codec, self.token = user, device, codec, token
        self.cursor, self.known, self.last_id = 0, 0, 0
        self.waits, self.redirects = 0, 0

    async def connect(self):
        if self.token is None:
            answer, _ = await asyncio.to_thread(post, "/v1/dev/token", {"userId": self.user})
            self.token = answer["token"]
        self.schedule = await self.ask()
        return await self.open(self.schedule["endpoints"], self.schedule["ticket"])

    async def ask(self):
        """A schedule. Who is told to wait waits as long as that, and shows the place that it was given."""
        request = {"deviceId": self.device, "transports": ["ws"]}
        while True:
            try:
                schedule, headers = await asyncio.to_thread(post, "/v1/schedule", request, self.token)
            except urllib.error.HTTPError as refused:
                problem = json.load(refused)
                assert refused.code == 503 and problem["reason"] == "OVERLOADED", problem
                assert int(refused.headers["Retry-After"]) * 1000 >= problem["retryAfterMs"], problem
                self.waits += 1
                await asyncio.sleep(problem["retryAfterMs"] / 1000)
                request["queueToken"] = problem.get("queueToken", "")
                continue
            assert headers["Cache-Control"] == "no-store", headers
            return schedule

    async def open(self, endpoints, ticket):
        """A connection to the first of these that welcomes it, or to where that sends it."""
        endpoint = next(e for e in endpoints if e["transport"] == "ws")
        # Extensions are the client's offer; a server may decline them all.
        socket = await websockets.connect(
            endpoint["url"], subprotocols=[self.codec.subprotocol], ping_interval=None
        )
        assert socket.subprotocol == self.codec.subprotocol, socket.subprotocol
        self.wire, self.gateway = self.codec(socket), endpoint["gatewayId"]
        await self.wire.send({"hello": {"ticket": ticket, "deviceId": self.device}})
        first = await self.wire.receive()
        if "disconnect" in first:
            if first["disconnect"]["code"] == 4009:
                # A place in this gateway's own line; a ticket is good for all of the list.
                await asyncio.sleep(first["disconnect"].get("retryAfterMs", 0) / 1000)
                return await self.open(endpoints[1:] + endpoints[:1], ticket)
            return await self.follow(first["disconnect"])
        self.redirects, self.welcome = 0, first["welcome"]
        self.known = int(self.welcome.get("inboxSeq", "0"))
        return self

    async def follow(self, disconnect):
        """Goes where a gateway sends it that lets go of it: there a place is kept for the ticket."""
        assert disconnect["code"] in (4001, 4002) and disconnect.get("redirect"), disconnect
        self.redirects += 1
        assert self.redirects <= REDIRECTS, "in circles"
        await self.wire.socket.close()
        await asyncio.sleep(disconnect.get("retryAfterMs", 0) / 1000)
        return await self.open(disconnect["redirect"], disconnect["ticket"])

    async def sent_elsewhere(self):
        """Waits until its gateway lets go of it, and follows."""
        while True:
            frame = await self.wire.receive(SENT_ELSEWHERE)
            self.take(frame)
            if "disconnect" in frame:
                return await self.follow(frame["disconnect"])

    def take(self, frame):
        for kind in ("notify", "heartbeatAck"):
            if kind in frame:
                self.known = max(self.known, int(frame[kind].get("inboxSeq", "0")))

    async def request(self, **method):
        self.last_id += 1
        await self.wire.send({"request": {"id": self.last_id, **method}})
        while True:
            frame = await self.wire.receive()
            if "response" in frame:
                assert frame["response"]["id"] == self.last_id, frame
                return frame["response"]
            self.take(frame)

    async def send(self, to, text, client_msg_id):
        body = base64.b64encode(text.encode()).decode()
        send = {"clientMsgId": client_msg_id, "to": {"userId": to}, "type": "text", "body": body}
        return (await self.request(send=send))["send"]

    async def heartbeat(self):
        await self.wire.send({"heartbeat": {}})
        while True:
            frame = await self.wire.receive()
            self.take(frame)
            if "heartbeatAck" in frame:
                return

    async def pull(self, count):
        """Waits for notifies until `count` rows came; the cursor moves by pulled rows only."""
        rows = []
        while len(rows) < count:
            if self.known <= self.cursor:
                self.take(await self.wire.receive())
                continue
            page = (await self.request(pull={"afterSeq": self.cursor}))["pull"]
            for item in page.get("items", []):
                assert int(item["seq"]) == self.cursor + 1, f"gap: {item} after {self.cursor}"
                self.cursor += 1
                rows.append(item["event"])
        return rows

    async def closed(self):
        """The code of the disconnect frame, which the close frame must repeat."""
        code = None
        try:
            while True:
                frame = await self.wire.receive()
                if "disconnect" in frame:
                    code = frame["disconnect"]["code"]
        except websockets.ConnectionClosed as end:
            assert end.rcvd is not None and end.rcvd.code == code, (end, code)
            return code


async def follow(tokens):
    codecs = [Json, Proto]
    clients = [Client("", f"follower-{n}", codecs[n % 2], token) for n, token in enumerate(tokens)]
    await asyncio.gather(*(client.connect() for client in clients))
    before = [client.gateway for client in clients]
    users = [client.welcome["userId"] for client in clients]
    assert len(set(before)) == 1, before
    ok(f"they are connected to {before[0]}")
    await asyncio.gather(*(client.sent_elsewhere() for client in clients))
    for client, gateway, user in zip(clients, before, users):
        assert client.gateway != gateway and client.welcome["userId"] == user, (client.gateway, client.welcome)
        await client.heartbeat()
    ok("they went where they were sent, and are welcome there")
    for client in clients:
        await client.wire.socket.close()


async def queue(tokens):
    clients = [Client("", f"waiter-{n}", Json, token) for n, token in enumerate(tokens)]
    await asyncio.gather(*(client.connect() for client in clients))
    ok(f"all are connected; {sum(client.waits > 0 for client in clients)} were told to wait")
    assert max(client.waits for client in clients) >= 1, "nobody was told to wait"
    for client in clients:
        await client.wire.socket.close()


async def talk():
    try:
        post("/v1/schedule", {"deviceId": "d"})
        raise AssertionError("scheduled without a token")
    except urllib.error.HTTPError as refused:
        problem = json.load(refused)
        assert refused.code == 401 and problem["reason"] == "UNAUTHENTICATED", problem
        assert refused.headers["Content-Type"].startswith("application/problem+json")
    ok("a schedule without a token is refused with a problem")

    alice = await Client(ALICE, "laptop", Json).connect()
    bob = await Client(BOB, "phone", Proto).connect()
    assert alice.welcome["userId"] == ALICE and bob.welcome["userId"] == BOB
    ok("both are scheduled, connected and welcomed, by JSON and by protobuf")

    sent = await alice.send(BOB, "hi bob ☺", "c-1")
    assert int(sent["messageId"]) > 0
    message = (await bob.pull(1))[0]["message"]
    assert base64.b64decode(message["body"]).decode() == "hi bob ☺", message
    assert message["messageId"] == sent["messageId"] and message["from"] == ALICE, message
    ok("bob is notified and pulls what alice sent")

    reply = await bob.send(ALICE, "hi alice", "c-1")
    assert reply["conversationId"] == sent["conversationId"]
    rows = await alice.pull(2)
    assert [r["message"]["conversationSeq"] for r in rows] == ["1", "2"], rows
    ok("alice pulls her own message and the answer, in the conversation's order")

    again = await alice.send(BOB, "hi bob ☺", "c-1")
    assert again["messageId"] == sent["messageId"] and again["duplicate"] is True, again
    error = (await alice.request(send={"clientMsgId": "c-1", "to": {"userId": BOB}, "body": "b3RoZXI="}))["error"]
    assert error["code"] == "ALREADY_EXISTS", error
    ok("a repeated send is one message, another body under its id is refused")

    assert "ack" in await alice.request(ack={"seq": str(alice.cursor)})
    ok("ack")

    unread = (await alice.request(conversations={}))["conversations"]
    entry, = unread["conversations"]
    assert unread["totalUnread"] == "1" and entry["unread"] == "1" and entry["peerId"] == BOB, unread
    read = (await alice.request(markRead={"conversationId": sent["conversationId"], "seq": "2"}))["markRead"]
    assert read.get("unread", "0") == "0" and read.get("totalUnread", "0") == "0", read
    event = (await alice.pull(1))[0]
    assert event["read"] == {"conversationId": sent["conversationId"], "seq": "2"}, event
    ok("unread is counted, markRead clears it and is told to every device")

    history = (await alice.request(history={"conversationId": sent["conversationId"]}))["history"]
    assert [m["clientMsgId"] for m in history["messages"]] == ["c-1", "c-1"], history
    presence = (await alice.request(presence={"userIds": [BOB, "nobody"]}))["presence"]["users"]
    assert presence[0]["online"] is True and not presence[1].get("online", False), presence
    ok("history and presence")

    interval = alice.schedule["heartbeat"]["intervalMs"] / 1000
    for _ in range(2 * round(alice.schedule["heartbeat"]["timeoutMs"] / alice.schedule["heartbeat"]["intervalMs"])):
        await asyncio.gather(alice.heartbeat(), bob.heartbeat())
        await asyncio.sleep(interval / 2)
    ok("heartbeats are acknowledged and keep both alive")

    await bob.wire.socket.close()
    for n in range(3):
        await alice.send(BOB, f"while you were away {n}", f"away-{n}")
    cursor = bob.cursor
    bob = await Client(BOB, "phone", Json).connect()
    bob.cursor = cursor
    texts = [base64.b64decode(r["message"]["body"]).decode() for r in await bob.pull(4) if "message" in r]
    assert texts == ["hi alice"] + [f"while you were away {n}" for n in range(3)], texts
    ok("bob comes back by the other subprotocol and catches up from his cursor")

    again = await Client(BOB, "phone", Json).connect()
    assert await bob.closed() == 4504
    ok("the older connection of a device is closed with 4504")

    await again.wire.socket.send("this is not JSON")
    assert await again.closed() == 4501
    ok("what is no frame is closed with 4501")

    silent = await Client(BOB, "phone", Json).connect()
    assert await silent.closed() == 4003
    ok("silence is closed with 4003")
    await alice.wire.socket.close()


async def main():
    match sys.argv[2:]:
        case []:
            await talk()
        case ["follow", *tokens]:
            await follow(tokens)
        case ["queue", *tokens]:
            await queue(tokens)
        case other:
            sys.exit(f"{other}: see the top of this file")


asyncio.run(asyncio.wait_for(main(), 120))
