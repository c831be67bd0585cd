"""A server with as much of the Hugging Face Hub's interface as pushing a folder needs; keeps commits in memory."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubServer:
    """`with HubServer() as hub:` gives `hub.url`; `hub.files` maps each pushed path to its newest content."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.commits: list[dict] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path.endswith("/repos/create"):
                    repository = json.loads(body)
                    name = "/".join(filter(None, (repository.get("organization"), repository["name"])))
                    self.answer({"url": f"{hub.url}/{name}", "name": name, "id": name})
                elif "/preupload/" in self.path:
                    files = json.loads(body)["files"]
                    self.answer(
                        {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
                    )
                elif "/commit/" in self.path:
                    hub.commit([json.loads(line) for line in body.splitlines()])
                    name = re.split("/api/(?:models|datasets)/", self.path)[1].split("/commit/")[0]
                    oid = f"{len(hub.commits):040x}"
                    self.answer({"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{name}/commit/{oid}"})
                else:
                    self.answer({})

            def do_GET(self):
                self.answer({"id": "model", "sha": f"{len(hub.commits):040x}", "siblings": [], "private": False})

            def answer(self, value):
                content = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def commit(self, lines: list[dict]) -> None:
        names = []
        for line in lines:
            if line["key"] == "file":
                names.append(line["value"]["path"])
                self.files[names[-1]] = base64.b64decode(line["value"]["content"])
        self.commits.append({"summary": lines[0]["value"]["summary"], "files": names})

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
