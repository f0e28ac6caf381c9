//! A client and codec in Rust with the standard library alone, and their driver.
//!
//! Written from protocol/SPEC.md and protocol/driver.md. The SPEC id stands where a rule is kept.
//! Build: `rustc -O --edition 2021 rust_driver.rs`.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, ErrorKind, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

// The standard library links the C library; these are the few calls that it does not wrap.
extern "C" {
    fn close(fd: i32) -> i32;
    fn dup3(from: i32, to: i32, flags: i32) -> i32;
    fn geteuid() -> u32;
    fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
}
const O_NONBLOCK: i32 = 0o4000;
const O_CLOEXEC: i32 = 0o2000000;
const CLOCK_MONOTONIC: i32 = 1;

// ---------------------------------------------------------------------------------------- JSON

const EXACT: f64 = 9007199254740992.0; // 2^53, SPEC R-3
const DEPTH: usize = 64; // SPEC R-6 asks for 32

#[derive(Clone, Debug)]
enum Json {
    Null,
    Bool,
    /// The text of the number: whether it is an integer is a matter of its spelling (SPEC R-3).
    Number(String),
    Text(String),
    List(Vec<Json>),
    /// In the order of the text; of a repeated name the last value counts (SPEC R-7).
    Object(Vec<(String, Json)>),
}

impl Json {
    fn get(&self, name: &str) -> Option<&Json> {
        match self {
            Json::Object(fields) => fields.iter().rev().find(|(key, _)| key == name).map(|f| &f.1),
            _ => None,
        }
    }
    fn text(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(Json::Text(text)) => Some(text),
            _ => None,
        }
    }
    fn number(&self, name: &str) -> Option<f64> {
        self.get(name).and_then(Json::as_number)
    }
    /// SPEC R-4: finite as a binary64.
    fn as_number(&self) -> Option<f64> {
        match self {
            Json::Number(text) => text.parse().ok().filter(|value: &f64| value.is_finite()),
            _ => None,
        }
    }
    /// SPEC R-3: no fraction, no exponent, exact in a binary64.
    fn as_integer(&self) -> Option<i64> {
        match self {
            Json::Number(text) if !text.contains(['.', 'e', 'E']) => {
                let value = text.parse::<i64>().ok()?;
                (value.unsigned_abs() < EXACT as u64).then_some(value)
            }
            _ => None,
        }
    }
    fn items(&self, name: &str) -> &[Json] {
        match self.get(name) {
            Some(Json::List(items)) => items,
            _ => &[],
        }
    }
}

/// One JSON text and nothing else around it but white space (RFC 8259).
fn parse_json(text: &str) -> Option<Json> {
    let mut parser = Parser { text: text.as_bytes(), at: 0 };
    let value = parser.value(0)?;
    parser.space();
    (parser.at == parser.text.len()).then_some(value)
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> u8 {
        *self.text.get(self.at).unwrap_or(&0)
    }
    fn space(&mut self) {
        while matches!(self.peek(), b' ' | b'\t' | b'\r' | b'\n') {
            self.at += 1;
        }
    }
    fn take(&mut self, word: &str) -> Option<()> {
        let found = self.text[self.at..].starts_with(word.as_bytes());
        self.at += if found { word.len() } else { 0 };
        found.then_some(())
    }
    fn value(&mut self, depth: usize) -> Option<Json> {
        if depth > DEPTH {
            return None;
        }
        self.space();
        match self.peek() {
            b'{' => self.object(depth),
            b'[' => self.list(depth),
            b'"' => self.string().map(Json::Text),
            b't' => self.take("true").map(|_| Json::Bool),
            b'f' => self.take("false").map(|_| Json::Bool),
            b'n' => self.take("null").map(|_| Json::Null),
            _ => self.number(),
        }
    }
    fn object(&mut self, depth: usize) -> Option<Json> {
        let mut fields = Vec::new();
        self.at += 1;
        self.space();
        while self.peek() != b'}' {
            if !fields.is_empty() {
                self.take(",")?;
                self.space();
            }
            let name = self.string()?;
            self.space();
            self.take(":")?;
            fields.push((name, self.value(depth + 1)?));
            self.space();
        }
        self.at += 1;
        Some(Json::Object(fields))
    }
    fn list(&mut self, depth: usize) -> Option<Json> {
        let mut items = Vec::new();
        self.at += 1;
        self.space();
        while self.peek() != b']' {
            if !items.is_empty() {
                self.take(",")?;
            }
            items.push(self.value(depth + 1)?);
            self.space();
        }
        self.at += 1;
        Some(Json::List(items))
    }
    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.peek().is_ascii_digit() {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }
    fn number(&mut self) -> Option<Json> {
        let start = self.at;
        let _ = self.take("-");
        if self.take("0").is_none() {
            self.digits()?;
        }
        if self.take(".").is_some() {
            self.digits()?;
        }
        if matches!(self.peek(), b'e' | b'E') {
            self.at += 1;
            if matches!(self.peek(), b'+' | b'-') {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = std::str::from_utf8(&self.text[start..self.at]).ok()?;
        Some(Json::Number(text.to_string()))
    }
    fn string(&mut self) -> Option<String> {
        self.take("\"")?;
        let mut units: Vec<u8> = Vec::new();
        loop {
            match self.peek() {
                b'"' => break,
                b'\\' => self.escape(&mut units)?,
                0..=0x1f => return None, // also the end of the text
                byte => {
                    units.push(byte);
                    self.at += 1;
                }
            }
        }
        self.at += 1;
        String::from_utf8(units).ok()
    }
    fn escape(&mut self, out: &mut Vec<u8>) -> Option<()> {
        self.at += 1;
        let letter = self.peek();
        self.at += 1;
        let character = match letter {
            b'"' | b'\\' | b'/' => letter as char,
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => self.unicode()?,
            _ => return None,
        };
        out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        Some(())
    }
    /// SPEC R-8: half a surrogate pair is read as U+FFFD.
    fn unicode(&mut self) -> Option<char> {
        let high = self.hex4()?;
        if (0xd800..0xdc00).contains(&high) && self.text[self.at..].starts_with(b"\\u") {
            let back = self.at;
            self.at += 2;
            let low = self.hex4()?;
            if (0xdc00..0xe000).contains(&low) {
                return char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00));
            }
            self.at = back;
        }
        Some(char::from_u32(high).unwrap_or('\u{fffd}'))
    }
    fn hex4(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        self.at += 4;
        u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    }
}

/// A string in ASCII, for the wire and for replies.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for unit in text.encode_utf16() {
        match unit {
            0x22 => out.push_str("\\\""),
            0x5c => out.push_str("\\\\"),
            0x20..=0x7e => out.push(unit as u8 as char),
            _ => out.push_str(&format!("\\u{unit:04x}")),
        }
    }
    out + "\""
}

// ---------------------------------------------------------------------------------------- codec

const MARKER: &[u8] = b"{\"version\":";
const SEND_LIMIT: usize = 4096; // SPEC F-2
const RECEIVE_LIMIT: usize = 4097; // SPEC F-4

#[derive(Default, Clone)]
struct Record {
    version: i64,
    pid: i64,
    scope_id: String,
    expiration_time: f64,
    signal: i64,
    deadline: Option<f64>,
    start_time: Option<i64>,
    pid_ns: Option<i64>,
    token: Option<i64>,
}

type Code = &'static str;

fn integer(object: &Json, name: &str, low: i64, high: i64, code: Code) -> Result<i64, Code> {
    let value = object.get(name).and_then(Json::as_integer);
    value.filter(|value| (low..=high).contains(value)).ok_or(code)
}

fn optional(object: &Json, name: &str, code: Code) -> Result<Option<i64>, Code> {
    match object.get(name) {
        None => Ok(None),
        Some(_) => integer(object, name, 0, i64::MAX, code).map(Some),
    }
}

impl Record {
    /// SPEC R-1; the codes in the order of SPEC E-1.
    fn from_json(object: &Json) -> Result<Record, Code> {
        for name in ["version", "pid", "scope_id", "expiration_time", "signal"] {
            object.get(name).ok_or("missing_field")?;
        }
        Ok(Record {
            version: integer(object, "version", 1, i64::MAX, "bad_version")?,
            pid: integer(object, "pid", 1, i32::MAX as i64, "bad_pid")?,
            scope_id: object.text("scope_id").ok_or("bad_scope_id")?.to_string(),
            expiration_time: object.number("expiration_time").ok_or("bad_expiration_time")?,
            signal: integer(object, "signal", i32::MIN as i64, 64, "bad_signal")?,
            deadline: match object.get("deadline") {
                None => None,
                Some(value) => Some(
                    value.as_number().filter(|value| *value >= 0.0).ok_or("bad_deadline")?,
                ),
            },
            start_time: optional(object, "start_time", "bad_start_time")?,
            pid_ns: optional(object, "pid_ns", "bad_pid_ns")?,
            token: optional(object, "token", "bad_token")?,
        })
    }

    /// The fields that are there, `version` first (SPEC R-2), the number with a point (SPEC R-4).
    fn to_json(&self) -> String {
        let mut text = format!(
            "{{\"version\": {}, \"pid\": {}, \"scope_id\": {}, \"expiration_time\": {}, \"signal\": {}",
            self.version,
            self.pid,
            quoted(&self.scope_id),
            seconds(self.expiration_time),
            self.signal
        );
        if let Some(deadline) = self.deadline {
            text += &format!(", \"deadline\": {}", seconds(deadline));
        }
        for (name, value) in
            [("start_time", self.start_time), ("pid_ns", self.pid_ns), ("token", self.token)]
        {
            if let Some(value) = value {
                text += &format!(", \"{name}\": {value}");
            }
        }
        text + "}"
    }

    /// The line that a sender may write, or why there is none.
    fn line(&self) -> Result<Vec<u8>, String> {
        if self.scope_id.is_empty() {
            return Err("SPEC R-11: the scope is empty".into());
        }
        let mut line = self.to_json().into_bytes();
        line.push(b'\n');
        if line.len() > SEND_LIMIT {
            return Err("SPEC F-2: the line is longer than PIPE_BUF".into());
        }
        Ok(line)
    }
}

/// A release is -1 (SPEC R-9), every other time has its microseconds.
fn seconds(time: f64) -> String {
    if time == -1.0 { "-1".into() } else { format!("{time:.6}") }
}

/// One line without its LF.
fn parse_line(line: &[u8]) -> Result<Record, Code> {
    if line.len() >= RECEIVE_LIMIT {
        return Err("oversize");
    }
    let text = std::str::from_utf8(line).map_err(|_| "utf8")?;
    let value = parse_json(text).ok_or("json")?;
    match value {
        Json::Object(_) => Record::from_json(&value),
        _ => Err("object"),
    }
}

#[derive(Default)]
struct Decoder {
    buffer: Vec<u8>,
    cut: bool, // the buffer is only the end of its line
}

impl Decoder {
    fn feed(&mut self, data: &[u8], out: &mut Vec<Result<Record, Code>>) {
        for &byte in data {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.buffer);
                judge(&line, std::mem::take(&mut self.cut), out);
                continue;
            }
            self.buffer.push(byte);
            if self.buffer.len() >= 2 * RECEIVE_LIMIT {
                // SPEC F-4, F-7: bounded memory, and the end of the line is what counts.
                self.buffer.drain(..self.buffer.len() - (RECEIVE_LIMIT - 1));
                self.cut = true;
            }
        }
    }
}

fn judge(line: &[u8], cut: bool, out: &mut Vec<Result<Record, Code>>) {
    let verdict = if cut { Err("oversize") } else { parse_line(line) };
    let bad = verdict.is_err();
    out.push(verdict);
    if bad {
        // SPEC F-7: one attempt from the last marker, unless it is the line's own start.
        let first = usize::from(!cut);
        let starts = (first..line.len()).rev();
        if let Some(start) = starts.into_iter().find(|&at| line[at..].starts_with(MARKER)) {
            if let Ok(record) = parse_line(&line[start..]) {
                out.push(Ok(record));
            }
        }
    }
}

// --------------------------------------------------------------------------------------- client

const ACQUIRE_WAIT: Duration = Duration::from_secs(2); // SPEC C-1

struct Client {
    version: i64,
    path: String,
    pipe: Option<File>, // kept open, close-on-exec (SPEC C-5)
    expiries: HashMap<(String, Option<i64>), Instant>,
    next_token: i64,
}

impl Client {
    fn new(path: Option<&str>, version: i64) -> Result<Client, String> {
        let set = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        let path = path
            .map(str::to_string)
            .or_else(|| set("FILETIMER_PATH")) // SPEC T-1
            .or_else(|| set("TORCHELASTIC_TIMER_FILE"))
            .ok_or("SPEC C-9: no path")?;
        check(&fs::metadata(&path).map_err(|error| error.to_string())?)?;
        // SPEC C-8: a counter from a start that no other client of this process shares.
        let start = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos());
        let next_token = (start % (1 << 52)) as i64;
        Ok(Client { version, path, pipe: None, expiries: HashMap::new(), next_token })
    }

    fn acquire(&mut self, scope: &str, after: f64, signal: i64, token: Option<i64>) -> Result<(), String> {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64());
        let mut record = self.record(scope, token);
        record.expiration_time = (wall + after).max(0.0);
        record.signal = signal;
        if self.version >= 2 {
            record.deadline = Some((monotonic() + after).max(0.0));
        }
        self.send(&record, ACQUIRE_WAIT)?;
        let expiry = Instant::now() + Duration::from_secs_f64(after.max(0.0));
        self.expiries.insert((scope.to_string(), token), expiry);
        Ok(())
    }

    /// Whether it was delivered; waits for at most what the timer has left (SPEC C-1, C-2).
    fn release(&mut self, scope: &str, token: Option<i64>) -> bool {
        let mut record = self.record(scope, token);
        record.expiration_time = -1.0;
        let expiry = self.expiries.remove(&(scope.to_string(), token));
        let left = expiry.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        self.send(&record, left).is_ok()
    }

    /// SPEC V-4, C-6: what is known of this process, asked for every record.
    fn record(&self, scope: &str, token: Option<i64>) -> Record {
        let mut record = Record {
            version: self.version,
            pid: std::process::id() as i64,
            scope_id: scope.to_string(),
            ..Record::default()
        };
        if self.version >= 2 {
            record.start_time = start_time();
            record.pid_ns = fs::metadata("/proc/self/ns/pid").ok().map(|found| found.ino() as i64);
            record.token = token;
        }
        record
    }

    fn send(&mut self, record: &Record, wait: Duration) -> Result<(), String> {
        let line = record.line()?;
        let give_up = Instant::now() + wait;
        if self.pipe.is_none() {
            self.pipe = Some(self.connect()?);
        }
        loop {
            // One write (SPEC F-3). The runtime of Rust ignores SIGPIPE (SPEC C-3).
            match self.pipe.as_ref().unwrap().write(&line) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::BrokenPipe => self.reconnect()?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if Instant::now() >= give_up {
                        return Err("the pipe is full".into());
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    fn connect(&self) -> Result<File, String> {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(O_NONBLOCK); // never O_CREAT (SPEC T-2)
        let pipe = options.open(&self.path).map_err(|error| error.to_string())?;
        check(&pipe.metadata().map_err(|error| error.to_string())?)?;
        Ok(pipe)
    }

    /// SPEC C-5: onto the same number.
    fn reconnect(&mut self) -> Result<(), String> {
        let fresh = self.connect()?;
        let number = self.pipe.take().unwrap().into_raw_fd();
        let moved = unsafe { dup3(fresh.as_raw_fd(), number, O_CLOEXEC) };
        self.pipe = Some(unsafe { File::from_raw_fd(number) });
        if moved < 0 { Err(io::Error::last_os_error().to_string()) } else { Ok(()) }
    }
}

/// SPEC C-4.
fn check(found: &fs::Metadata) -> Result<(), String> {
    if !found.file_type().is_fifo() {
        return Err("SPEC C-4: not a FIFO".into());
    }
    if found.uid() != 0 && found.uid() != unsafe { geteuid() } {
        return Err("SPEC C-4: a FIFO of somebody else".into());
    }
    Ok(())
}

fn monotonic() -> f64 {
    let mut time = [0; 2];
    unsafe { clock_gettime(CLOCK_MONOTONIC, &mut time) };
    time[0] as f64 + time[1] as f64 / 1e9
}

fn start_time() -> Option<i64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

// --------------------------------------------------------------------------------------- driver

const HELLO: &str = r#"{"name": "standard library client", "language": "Rust", "versions": [1, 2],
 "roles": ["codec", "client"], "skips": {
 "fork": "the standard library cannot fork", "handler": "nor handle signals"}}"#;

#[derive(Default)]
struct Driver {
    client: Option<Client>,
    guards: HashMap<String, (String, Option<i64>)>,
}

impl Driver {
    fn answer(&mut self, request: &Json) -> String {
        let reply = match request.text("op").unwrap_or("") {
            "hello" => Ok(HELLO.replace('\n', "")),
            "noop" => Ok(done(true)),
            "decode" => Ok(decode(request)),
            "encode" => encode(request),
            "open" => self.open(request),
            "acquire" => self.acquire(request),
            "release" => self.release(request),
            "enter" => self.enter(request),
            "leave" => self.leave(request),
            "thread" => Ok(self.thread(request)),
            "close_fd" => {
                unsafe { close(request.number("fd").unwrap_or(-1.0) as i32) };
                Ok(done(true))
            }
            op => Ok(format!("{{\"unsupported\": {}}}", quoted(op))),
        };
        reply.unwrap_or_else(|error| format!("{{\"error\": {}}}", quoted(&error)))
    }

    fn client(&mut self) -> Result<&mut Client, String> {
        self.client.as_mut().ok_or("no client is open".into())
    }

    fn open(&mut self, request: &Json) -> Result<String, String> {
        self.client = None;
        let version = request.number("version").unwrap_or(2.0) as i64;
        self.client = Some(Client::new(request.text("path"), version)?);
        Ok(done(true))
    }

    fn acquire(&mut self, request: &Json) -> Result<String, String> {
        let after = request.number("after").unwrap_or(0.0);
        let signal = request.number("signal").unwrap_or(9.0) as i64;
        self.client()?.acquire(request.text("scope_id").unwrap_or(""), after, signal, None)?;
        Ok(done(true))
    }

    fn release(&mut self, request: &Json) -> Result<String, String> {
        let scope = request.text("scope_id").unwrap_or("");
        Ok(done(self.client().is_ok_and(|client| client.release(scope, None))))
    }

    fn enter(&mut self, request: &Json) -> Result<String, String> {
        let scope = request.text("scope_id").unwrap_or("").to_string();
        let client = self.client()?;
        client.next_token += 1;
        let token = (client.version >= 2).then_some(client.next_token);
        client.acquire(&scope, request.number("after").unwrap_or(0.0), 9, token)?;
        self.guards.insert(request.text("guard").unwrap_or("").to_string(), (scope, token));
        Ok(done(true))
    }

    fn leave(&mut self, request: &Json) -> Result<String, String> {
        let guard = self.guards.remove(request.text("guard").unwrap_or("")).ok_or("no such guard")?;
        Ok(done(self.client()?.release(&guard.0, guard.1)))
    }

    fn thread(&mut self, request: &Json) -> String {
        let replies: Vec<String> = std::thread::scope(|scope| {
            let work = || request.items("do").iter().map(|one| self.answer(one)).collect();
            scope.spawn(work).join().unwrap()
        });
        format!("{{\"ok\": true, \"replies\": [{}]}}", replies.join(", "))
    }
}

fn done(ok: bool) -> String {
    if ok { "{\"ok\": true}".into() } else { "{\"ok\": false, \"why\": \"not delivered\"}".into() }
}

fn decode(request: &Json) -> String {
    let (mut decoder, mut verdicts) = (Decoder::default(), Vec::new());
    for read in request.items("reads") {
        if let Json::Text(hex) = read {
            decoder.feed(&from_hex(hex), &mut verdicts);
        }
    }
    let told = verdicts.iter().map(|verdict| match verdict {
        // Every digit: `seconds` is for senders.
        Ok(record) => format!("{{\"record\": {}}}", told(record)),
        Err(code) => format!("{{\"error\": \"{code}\"}}"),
    });
    format!("{{\"results\": [{}]}}", told.collect::<Vec<_>>().join(", "))
}

/// The record in a reply: as on the wire, but with the times in full.
fn told(record: &Record) -> String {
    let plain = Record { expiration_time: -1.0, deadline: None, ..record.clone() }.to_json();
    let time = format!("\"expiration_time\": {:?}", record.expiration_time);
    let mut text = plain.replacen("\"expiration_time\": -1", &time, 1);
    if let Some(deadline) = record.deadline {
        text.pop();
        text += &format!(", \"deadline\": {deadline:?}}}");
    }
    text
}

fn encode(request: &Json) -> Result<String, String> {
    let record = Record::from_json(request.get("record").ok_or("no record")?)?;
    let hex: String = record.line()?.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{{\"hex\": \"{hex}\"}}"))
}

fn from_hex(hex: &str) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).unwrap_or(0) as u8;
    hex.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn main() {
    let mut driver = Driver::default();
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        let reply = match parse_json(&line) {
            Some(request) => driver.answer(&request),
            None => "{\"error\": \"the request is not JSON\"}".into(),
        };
        let mut out = io::stdout().lock();
        if writeln!(out, "{reply}").and_then(|_| out.flush()).is_err() {
            return;
        }
    }
}
