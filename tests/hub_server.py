"""A server with as much of the Hugging Face Hub's interface as pushing and loading need; keeps commits in memory.

    with HubServer() as hub:
        environment = {**os.environ, **hub.environment(cache_dir)}
        ...
    hub.files                       # path -> newest content
    hub.commits[0]["content"]       # path -> content of the repository at that commit
    hub.fail("/commit/", 500)       # from now on; `times=1` for the next request only

The only valid token is `TOKEN`; `READ_TOKEN` may read.
"""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN, READ_TOKEN = "hf_token", "hf_read_only"
USER, ORGANISATION = "someone", "team"


class HubServer:
    """`with HubServer() as hub:` gives `hub.url`; `hub.files` maps each pushed path to its newest content."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.commits: list[dict] = []
        self.repositories: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.faults: list[dict] = []
        # A push waits until this is set, before its files are read.
        self.open = threading.Event()
        self.open.set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def environment(self, cache: str | Path, token: str = TOKEN) -> dict[str, str]:
        """Environment variables with which huggingface_hub talks to this server and keeps its cache apart."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache)}

    def use_in_process(self, monkeypatch, token: str | None = TOKEN) -> None:
        """Make huggingface_hub of this process, already imported, talk to this server."""
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        if token is None:
            monkeypatch.delenv("HF_TOKEN", raising=False)
            monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent")
        else:
            monkeypatch.setenv("HF_TOKEN", token)

    def write(self, directory: Path, revision: str = "main", folder: str = "") -> Path:
        """Write a commit's files, or those of one of its folders, into a directory."""
        for name, content in self.at(revision)["content"].items():
            if name.startswith(folder):
                path = directory / name.removeprefix(folder)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return directory

    def fail(self, path: str, status: int, times: int | None = None) -> None:
        """Answer requests whose path contains `path` with this status, so many times (None: always)."""
        self.faults.append({"path": path, "status": status, "times": times})

    def fault(self, path: str) -> int | None:
        """The status with which a request fails, if it does."""
        for fault in self.faults:
            if fault["path"] in path and fault["times"] != 0:
                if fault["times"] is not None:
                    fault["times"] -= 1
                return fault["status"]
        return None

    def commit(self, repository: str, lines: list[dict]) -> str:
        """Apply a commit as the client sends it; the answer is its hash."""
        names = []
        for line in lines:
            if line["key"] == "file":
                names.append(line["value"]["path"])
                self.files[names[-1]] = base64.b64decode(line["value"]["content"])
        oid = f"{len(self.commits) + 1:040x}"
        summary = lines[0]["value"]["summary"]
        self.commits.append(
            {"summary": summary, "files": names, "oid": oid, "repository": repository, "content": dict(self.files)}
        )
        return oid

    def at(self, revision: str) -> dict | None:
        """The commit of a hash, or the newest."""
        if revision == "main":
            return self.commits[-1] if self.commits else {"content": {}, "oid": "0" * 40}
        return next((commit for commit in self.commits if commit["oid"] == revision), None)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.refused(write=True):
            return
        hub = self.hub
        if self.path.endswith("/repos/create"):
            repository = json.loads(body)
            owner = repository.get("organization") or USER
            name = f"{owner}/{repository['name']}"
            if owner not in (USER, ORGANISATION):
                self.answer({"error": "You don't have the rights to create a model under this namespace"}, 403)
            elif name in hub.repositories:
                self.answer({"error": "You already created this model repo", "url": f"{hub.url}/{name}"}, 409)
            else:
                hub.repositories.add(name)
                self.answer({"url": f"{hub.url}/{name}", "name": name, "id": name})
        elif "/preupload/" in self.path:
            hub.open.wait(60)
            files = json.loads(body)["files"]
            self.answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        elif "/commit/" in self.path:
            name = re.split("/api/(?:models|datasets)/", self.path)[1].split("/commit/")[0]
            oid = hub.commit(name, [json.loads(line) for line in body.splitlines()])
            self.answer({"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{name}/commit/{oid}"})
        else:
            self.answer({})

    def do_GET(self):
        if self.refused():
            return
        hub = self.hub
        if self.path.endswith("/api/whoami-v2"):
            role = "read" if self.token() == READ_TOKEN else "write"
            token = {"displayName": "test", "role": role}
            user = {"type": "user", "name": USER, "orgs": [{"name": ORGANISATION}], "auth": {"accessToken": token}}
            self.answer(user)
        elif "/auth-check" in self.path:
            self.answer({})
        elif match := re.match(
            r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/?]+)/?([^?]*))?", self.path
        ):
            commit = hub.at(match[3] or "main")
            if match[1] not in hub.repositories:
                self.missing("RepoNotFound")
            elif commit is None:
                self.missing("RevisionNotFound")
            elif match[2] == "tree":
                found = [path for path in commit["content"] if path.startswith(match[4])]
                if found:
                    self.answer([{"type": "file", "path": path, "size": 1, "oid": "0"} for path in found])
                else:
                    self.missing("EntryNotFound")
            else:
                files = [{"rfilename": path} for path in commit["content"]]
                self.answer({"id": match[1], "sha": commit["oid"], "siblings": files, "private": False})
        elif match := re.match(r"/(?:datasets/)?[^/]+/[^/]+/resolve/([^/]+)/([^?]+)", self.path):
            commit = hub.at(match[1])
            if commit is None:
                self.missing("RevisionNotFound")
            elif match[2] not in commit["content"]:
                self.missing("EntryNotFound")
            else:
                self.answer_file(commit, match[2])
        else:
            self.missing("RepoNotFound")

    do_HEAD = do_GET

    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def refused(self, write: bool = False) -> bool:
        """Answer a request that fails, for its token or because a test wants it to."""
        self.hub.requests.append((self.command, self.path))
        status = self.hub.fault(self.path)
        if status is not None:
            self.answer({"error": "the test wants this to fail"}, status)
        elif self.token() not in (TOKEN, READ_TOKEN, ""):
            self.answer({"error": "Invalid credentials in Authorization header"}, 401)
        elif (
            (write and "/validate-yaml" not in self.path) or "/auth-check/write" in self.path
        ) and self.token() != TOKEN:
            self.answer({"error": "You don't have the rights to write"}, 403)
        else:
            return False
        return True

    def missing(self, code: str) -> None:
        self.answer({"error": code}, 404, {"X-Error-Code": code})

    def answer(self, value, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def answer_file(self, commit: dict, name: str) -> None:
        content = commit["content"][name]
        etag = f'"{len(content)}-{commit["oid"]}-{abs(hash(content))}"'
        self.send(content, 200, {"X-Repo-Commit": commit["oid"], "ETag": etag, "Accept-Ranges": "bytes"})

    def send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass
