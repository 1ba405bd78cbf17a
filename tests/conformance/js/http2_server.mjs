// An HTTP/2 server on nghttp2, the library in Node, for the client's streams. What it does is up to the endpoint's name.
//
// Arguments: one JSON object {"key"?, "cert"?, "settings"?, "padding"?}. It prints one JSON object a line: {"port"} when
// it listens, and then what it sees: {"session": n}, {"ping": n}, {"pong": true}, {"closed": code}, {"full": bytes sent}. It runs until
// its standard input ends.
import http2 from "node:http2";

const order = JSON.parse(process.argv[2]);
const { constants } = http2;
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const options = {
  settings: order.settings,
  paddingStrategy: order.padding ? constants.PADDING_STRATEGY_MAX : constants.PADDING_STRATEGY_NONE,
};
const server =
  order.key === undefined
    ? http2.createServer(options)
    : http2.createSecureServer({ ...options, key: order.key, cert: order.cert });

const echo = (stream) => {
  stream.respond({ ":status": 200, "content-type": "application/vnd.amazon.eventstream" });
  stream.pipe(stream);
};
const afterTheFirst = (act) => (stream) => {
  echo(stream);
  stream.once("data", () => setImmediate(act, stream));
};

const refused = new WeakSet();
const models = {
  echo,
  // Everything around a response that a server may add: a 103, a head in several frames, trailers.
  ornate(stream) {
    stream.additionalHeaders({ ":status": 103, link: "</x>; rel=preload" });
    const headers = { ":status": 200, "x-amzn-invoked-production-variant": "ornate" };
    for (let number = 0; number < 3; number++) headers[`x-large-${number}`] = `${number}`.repeat(9000);
    stream.respond(headers, { waitForTrailers: true });
    stream.on("wantTrailers", () => stream.sendTrailers({ "x-trailer": "value" }));
    stream.pipe(stream);
  },
  refusing(stream) {
    if (refused.has(stream.session)) return echo(stream);
    refused.add(stream.session);
    stream.close(constants.NGHTTP2_REFUSED_STREAM);
  },
  resetting: afterTheFirst((stream) => stream.destroy(new Error("on purpose"))),
  cutting: afterTheFirst((stream) => stream.session.socket.destroySoon()),
  closing: afterTheFirst((stream) => stream.session.close()),
  disowning: afterTheFirst((stream) => stream.session.goaway(constants.NGHTTP2_NO_ERROR, stream.id - 2)),
  shrinking: afterTheFirst((stream) => stream.session.settings({ initialWindowSize: 5000 })),
  pinging: afterTheFirst((stream) => stream.session.ping((error) => say({ pong: error === null }))),
  // The request's first message a hundred times, as fast as flow control allows.
  flooding(stream) {
    stream.respond({ ":status": 200 });
    let head = Buffer.alloc(0);
    const begin = (data) => {
      head = Buffer.concat([head, data]);
      if (head.length < 4 || head.length < head.readUInt32BE(0)) return;
      stream.off("data", begin);
      const frame = head.subarray(0, head.readUInt32BE(0));
      let sent = 0;
      let isFull = false;
      const { initialWindowSize } = stream.session.remoteSettings;
      const before = stream.session.state.remoteWindowSize;
      const more = () => {
        while (sent < 100) {
          sent++;
          if (!stream.write(frame)) {
            stream.once("drain", more);
            return;
          }
        }
        stream.end();
      };
      const look = () => {
        if (isFull || stream.destroyed) return;
        // The connection's window tells how much of the stream's is used.
        isFull = before - stream.session.state.remoteWindowSize === initialWindowSize;
        if (isFull) say({ full: sent * frame.length });
        else setImmediate(look);
      };
      more();
      look();
    };
    stream.on("data", begin);
  },
};

let sessions = 0;
server.on("session", (session) => {
  say({ session: ++sessions });
  let pings = 0;
  session.on("ping", () => say({ ping: ++pings }));
  session.on("error", () => {});
});
server.on("stream", (stream, headers) => {
  stream.on("error", () => {});
  stream.on("close", () => say({ closed: stream.rstCode }));
  models[headers[":path"].split("/")[2]](stream);
});
server.listen(0, "127.0.0.1", () => say({ port: server.address().port }));
process.stdin.on("end", () => process.exit()).resume();
