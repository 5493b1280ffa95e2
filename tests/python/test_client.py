"""The published Python client (PyPI `voidrun` 0.4.0), unmodified, against `voidrun daemon --listen` with real sandboxes.

VOIDRUN_BIN is the program, VOIDRUN_HOME a store with the image `code`, VOIDRUN_KERNEL a guest kernel; scripts/test sees to
them, and to an interpreter that has the client. What the client does not check itself is checked here.
"""

import asyncio
import base64
import json
import logging
import os
import re
import secrets
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.request

# Loopback is asked directly, whatever proxy there is.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"

from voidrun import VoidRun
from voidrun.api_client.exceptions import ApiException, NotFoundException, UnauthorizedException

# Of what ends by itself long before.
PATIENCE = 60


class Daemon:
    """A daemon at a port of its own, in the environment that the client reads."""

    def __init__(self, directory):
        key = secrets.token_hex(32)
        key_file = os.path.join(directory, "key")
        with open(os.open(key_file, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
            file.write(key + "\n")
        self.process = subprocess.Popen(
            [os.environ["VOIDRUN_BIN"], "daemon", "--listen", "127.0.0.1:0", "--key-file", key_file],
            env=os.environ | {"XDG_RUNTIME_DIR": directory},
            stderr=subprocess.PIPE,
            text=True,
        )
        said = ""
        while "serves" not in said:
            line = self.process.stderr.readline()
            assert line, f"the daemon does not serve: {said}"
            said += line
        os.environ["VR_API_URL"] = re.search(r"http://[0-9.:]+", said)[0] + "/api"
        os.environ["VR_API_KEY"] = key
        # A pipe that is full would hold it up.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def end(self):
        self.process.terminate()
        self.process.wait(PATIENCE)
        self.process.stderr.close()


def setUpModule():
    global client, sandbox
    directory = tempfile.TemporaryDirectory()
    unittest.addModuleCleanup(directory.cleanup)
    daemon = Daemon(directory.name)
    unittest.addModuleCleanup(daemon.end)
    client = VoidRun()
    sandbox = client.create_sandbox(
        mem=1024, cpu=1, env_vars={"GREETING": "hello"}, labels={"client": "python"}, user_id="someone", region="here"
    )
    unittest.addModuleCleanup(sandbox.remove)


class Sandboxes(unittest.TestCase):
    def test_created_found_and_listed(self):
        self.assertEqual((sandbox.image, sandbox.cpu, sandbox.mem, sandbox.status), ("code", 1, 1024, "running"))
        for key in (sandbox.id, sandbox.name):
            found = client.get_sandbox(key)
            self.assertEqual((found.id, found.name, found.created_at), (sandbox.id, sandbox.name, sandbox.created_at))
            self.assertEqual((found.env_vars, found.labels), ({"GREETING": "hello"}, {"client": "python"}))
        listed = client.list_sandboxes(labels={"client": "python"})
        self.assertEqual([other.id for other in listed.sandboxes], [sandbox.id])
        self.assertEqual((listed.meta.total, listed.meta.page, listed.meta.total_pages), (1, 1, 1))
        self.assertEqual(client.list_sandboxes(labels={"client": "other"}).meta.total, 0)

    def test_removed(self):
        with client.create_sandbox(name="removed") as other:
            self.assertEqual(other.exec("echo $((6 * 7))").data.stdout, "42\n")
        with self.assertRaises(NotFoundException) as raised:
            client.get_sandbox("removed")
        self.assertIn("no sandbox removed", raised.exception.body)

    def test_ports(self):
        with client.create_sandbox(name="ports", ports=[{"protocol": "http", "port": 8000}]) as web:
            self.assertEqual([(port.protocol, port.port) for port in web.ports], [("http", 8000)])
            web.commands.run("exec python3 -m http.server --bind 127.0.0.1 8000", cwd="/srv")
            url = web.get_public_url(8000).url
            self.assertEqual([shown.url for shown in web.get_public_urls()], [url])
            self.assertIsNone(web.get_public_url(8001))
            end = time.monotonic() + PATIENCE
            while True:
                try:
                    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                        break
                except OSError:
                    # Nobody listens in the guest yet.
                    self.assertLess(time.monotonic(), end)
                    time.sleep(0.1)
            self.assertEqual(answer.status, 200)

    def test_what_is_refused(self):
        with self.assertRaises(UnauthorizedException):
            VoidRun(api_key="wrong").list_sandboxes()
        for wrong, status, word in [({"image": "NONE"}, 422, "NONE"), ({"name": sandbox.name}, 409, "name")]:
            with self.assertRaises(ApiException) as raised:
                client.create_sandbox(**wrong)
            self.assertEqual(raised.exception.status, status)
            self.assertIn(word, raised.exception.body)


class Commands(unittest.TestCase):
    def test_exec(self):
        done = sandbox.exec("echo $GREETING $NAME; pwd; echo careful >&2; exit 3", cwd="/tmp", env={"NAME": "ü"})
        self.assertEqual((done.status_code, done.data.exit_code), (200, 3))
        self.assertEqual((done.data.stdout, done.data.stderr), ("hello ü\n/tmp\n", "careful\n"))
        self.assertTrue(done.request_id)
        self.assertEqual(sandbox.exec("echo begun; sleep 600", timeout=1).data.exit_code, 124)
        self.assertEqual(sandbox.exec("for n in {1..3}; do echo $n; done").data.stdout, "1\n2\n3\n")

    def test_exec_stream(self):
        stdout, stderr, ends = [], [], []
        sandbox.exec_stream(
            "for n in 1 2 3; do echo line $n; sleep 0.2; done; echo careful >&2; exit 4",
            on_stdout=stdout.append, on_stderr=stderr.append, on_exit=ends.append, on_error=self.fail,
        )
        self.assertEqual("".join(stdout).split(), "line 1 line 2 line 3".split())
        self.assertGreater(len(stdout), 1)
        self.assertEqual(("".join(stderr).strip(), [end["exitCode"] for end in ends]), ("careful", [4]))

    def test_background(self):
        run = sandbox.commands.run("echo begun; exec sleep 600", cwd="/tmp").data
        self.assertTrue(run.success)
        listed = {process.pid: process for process in sandbox.commands.list().data}
        self.assertEqual((listed[run.pid].running, listed[run.pid].exit_code), (True, None))
        self.assertIn("begun", listed[run.pid].command)
        shown, ends = [], []

        def kill(text):
            shown.append(text)
            self.assertTrue(sandbox.commands.kill(run.pid).data.success)

        sandbox.commands.connect(run.pid, on_stdout=kill, on_exit=ends.append, on_error=self.fail)
        self.assertEqual(("".join(shown).strip(), ends[0]["exitCode"]), ("begun", 143))
        for _ in range(2):
            self.assertEqual(sandbox.commands.wait(run.pid).data.exit_code, 143)
        self.assertFalse(sandbox.commands.kill(run.pid).data.success)
        self.assertEqual(sandbox.commands.wait(sandbox.commands.run("exit 5").data.pid).data.exit_code, 5)
        with self.assertRaises(NotFoundException):
            sandbox.commands.wait(999_999)

    def test_code(self):
        programs = {
            "python": "import json\nprint(json.dumps({'it': \"isn't\", 'sum': sum(range(10))}))",
            "javascript": "console.log(JSON.stringify({ it: \"isn't\", sum: [...Array(10).keys()].reduce((a, b) => a + b) }))",
            "typescript": "const sum: number = 45;\nconsole.log(JSON.stringify({ it: \"isn't\", sum }))",
            "bash": "echo '{\"it\": \"isn'\"'\"'t\", \"sum\": '$((9 * 5))'}'",
        }
        for language, program in programs.items():
            with self.subTest(language):
                result = sandbox.run_code(program, language=language)
                self.assertEqual(result.results, {"it": "isn't", "sum": 45}, result)
                self.assertEqual((result.success, result.exit_code, result.error), (True, 0, None))
        # By a file: it has an empty line in it.
        result = sandbox.run_code("import sys\n\nprint('ü', file=sys.stderr)\nsys.exit(3)\n")
        self.assertEqual((result.success, result.exit_code, result.results, result.stderr), (False, 3, None, "ü\n"))


class Files(unittest.IsolatedAsyncioTestCase):
    def test_in_and_out(self):
        files = sandbox.fs
        self.assertTrue(files.create_directory("/root/py/dir").status_code in (200, 201))
        content = os.urandom(1 << 20)
        files.upload_file("/root/py/bytes", content)
        files.upload_file("/root/py/täxt 1", "hällo\n")
        self.assertEqual(bytes(files.download_file("/root/py/bytes")), content)
        self.assertEqual(sandbox.exec("cat '/root/py/täxt 1'").data.stdout, "hällo\n")
        self.assertEqual([file.name for file in files.list_files("/root/py").data], ["bytes", "dir", "täxt 1"])
        files.change_permissions("/root/py/bytes", "600")

        def ask(what, **parameters):
            """As it came: the client makes an exec's answer of it."""
            return json.loads(getattr(files._api, what + "_without_preload_content")(id=sandbox.id, **parameters).data)["data"]

        self.assertEqual(files.stat_file("/root/py/bytes").status_code, 200)
        found = ask("stat_file", path="/root/py/bytes")
        self.assertEqual((found["name"], found["size"], found["mode"], found["isDir"]), ("bytes", 1 << 20, "0600", False))
        files.create_file("/root/py/dir/new.txt")
        files.copy_file("/root/py/dir", "/root/py/copy")
        files.move_file("/root/py/dir", "/root/py/moved")
        self.assertEqual(files.search_files("/root/py", "*.txt").status_code, 200)
        found = ask("search_files", path="/root/py", pattern="*.txt")["files"]
        self.assertEqual([file["path"] for file in found], ["/root/py/copy/new.txt", "/root/py/moved/new.txt"])
        files.delete_file("/root/py/copy")
        for missing in (files.stat_file, files.download_file, files.list_files):
            with self.assertRaises(NotFoundException) as raised:
                missing("/root/py/copy")
            self.assertIn("/root/py/copy", str(raised.exception.body))

    async def test_watched(self):
        sandbox.fs.create_directory("/root/watched/dir")
        events = []
        watcher = await sandbox.fs.watch("/root/watched", on_event=events.append, on_error=self.fail)
        sandbox.fs.upload_file("/root/watched/dir/new", "123")
        await until(lambda: any(event["path"] == "/root/watched/dir/new" for event in events))
        self.assertEqual({event["type"] for event in events} - {"created", "modified"}, set())
        watcher.close()


async def until(is_there):
    end = time.monotonic() + PATIENCE
    while not is_there():
        assert time.monotonic() < end, "it has not happened"
        await asyncio.sleep(0.05)


# Where requests hold its loop up, which it tells, they are the client's.
logging.getLogger("asyncio").setLevel(logging.ERROR)


class Terminals(unittest.IsolatedAsyncioTestCase):
    async def connect(self, session_id=None):
        """A terminal that shows its prompt, and what it has shown."""
        shown = []
        terminal = await sandbox.pty.connect(session_id, on_data=shown.append, on_error=self.fail)
        self.addAsyncCleanup(terminal.close)
        await until(lambda: "# " in "".join(shown))
        return terminal, shown

    async def test_ephemeral(self):
        terminal, shown = await self.connect()
        self.assertIn("42 hello ü\r\n", await terminal.run_command("echo $((6 * 7)) $GREETING ü"))
        terminal.send_input("tty\n")
        await until(lambda: "/dev/pts/" in "".join(shown))
        self.assertEqual(sandbox.pty.list().data.sessions, [])

    async def test_sessions(self):
        created = sandbox.pty.create_session(cols=100, rows=30).data.data
        listed = {session.id: session for session in sandbox.pty.list().data.sessions}
        session = listed[created.session_id]
        self.assertEqual((session.alive, session.clients, session.created_at), (True, 0, created.created_at))
        terminal, shown = await self.connect(created.session_id)
        self.assertIn("30 100\r\n", await terminal.run_command("stty size; NAME=kept"))
        await terminal.resize(cols=132, rows=43)
        # Not by run_command: the shell shows its prompt once more when the size changes.
        terminal.send_input("stty size\n")
        await until(lambda: "43 132\r\n" in "".join(shown))
        await terminal.close()

        again, shown = await self.connect(created.session_id)
        self.assertIn("30 100", "".join(shown))
        self.assertIn("<kept>\r\n", await again.run_command('echo "<$NAME>"'))
        await again.close()

        api, path = sandbox._exec_api, {"id": sandbox.id, "session_id": created.session_id}
        self.assertEqual(api.execute_in_pty_session(**path, execute_in_session_request={"command": "echo typed"}).status, "success")
        await until(lambda: "\rtyped\r\n" in api.get_pty_buffer(**path).data.output)
        self.assertEqual(sandbox.pty.delete_session(created.session_id).data.status, "success")
        self.assertNotIn(created.session_id, [session.id for session in sandbox.pty.list().data.sessions])
        with self.assertRaises(NotFoundException):
            sandbox.pty.delete_session(created.session_id)

    async def test_session_exec(self):
        def ask(**request):
            return sandbox._exec_api.session_exec(sandbox.id, request)

        session = ask(action="create").session_id
        self.assertEqual(ask(action="exec", session_id=session, command="cd /tmp; X=1").exit_code, 0)
        done = ask(action="exec", session_id=session, command="pwd; echo $X; (exit 7)")
        self.assertEqual((done.success, done.exit_code, done.output), (False, 7, "/tmp\r\n1\r\n"))
        self.assertTrue(ask(action="resize", session_id=session, cols=100, rows=30).success)
        self.assertTrue(ask(action="input", session_id=session, input="echo typed\n").success)
        # The client asks for NDJSON and cannot make anything of it; as it came it is passed on.
        request = {"sessionId": session, "command": "echo streamed"}
        answer = sandbox._exec_api.session_exec_stream_without_preload_content(sandbox.id, request)
        pieces = [json.loads(line) for line in answer.data.splitlines()]
        printed = b"".join(base64.b64decode(piece["data"]) for piece in pieces[:-1])
        self.assertEqual((printed, pieces[-1]["exitCode"]), (b"streamed\r\n", 0))
        self.assertTrue(ask(action="close", session_id=session).success)


if __name__ == "__main__":
    unittest.main()
