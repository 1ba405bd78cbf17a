"""A model container for tests: standard library only, with misbehaviour selected by flags."""

from __future__ import annotations

import argparse
import http.server
import json
import os
import signal
import subprocess
import sys
import threading


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--exit", type=int, help="write to standard error and exit with this code")
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--farewell", action="store_true", help="exit with code 0 on SIGTERM")
    parser.add_argument("--child", action="store_true", help="start a process that hides in its own session")
    parser.add_argument("--write", type=int, default=0, help="first write this many bytes without a line break")
    arguments = parser.parse_args()

    if arguments.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if arguments.farewell:
        signal.signal(signal.SIGTERM, lambda *_: (print("farewell", flush=True), os._exit(0)))
    print(f"pid {os.getpid()}", flush=True)
    if arguments.child:
        command = [
            sys.executable,
            "-ISc",
            "import signal; signal.signal(15, 1); print('up', flush=True); signal.pause()",
        ]
        child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE)
        child.stdout.readline()
        print(f"child {child.pid}", flush=True)
    if arguments.write:
        sys.stdout.write("x" * arguments.write)
        sys.stdout.flush()
        print("\nwritten", flush=True)
    if arguments.exit is not None:
        print("cannot load the model", file=sys.stderr, flush=True)
        sys.exit(arguments.exit)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(200, b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if body == b"environment":
                self.answer(200, json.dumps(dict(os.environ)).encode())
            elif body == b"crash":
                os._exit(3)
            else:
                self.answer(200, body)

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
