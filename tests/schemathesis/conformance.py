"""schemathesis (PyPI), against `voidrun daemon --listen`: operations of the OpenAPI document with data that is made up, as the
document allows it and not. Each answer has to be one that the document has, and none may be a fault of ours.

    conformance.py nothing|sandbox EXAMPLES [OPTION...]

`nothing`: a store with nothing in it, so that nothing is found. `sandbox`: paths lead to one that runs, with a terminal; for
this VOIDRUN_HOME is a store with the image `code`, and VOIDRUN_KERNEL a guest kernel. VOIDRUN_BIN is the program, EXAMPLES how
many requests an operation gets at the most in each phase, and each OPTION one of `schemathesis run`.

Not checked: whether data is accepted that the document allows (positive_data_acceptance), since that is up to the guest, which
has neither such files nor such users; what links between operations would show (the phase `stateful`), of which there are none.
"""

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import urllib.request

# Ends or hides what the others are tried on, makes machines or writes them to the disk, goes to the net, or has no end.
EXCLUDED = {
    "nothing": ["createSandbox", "pullImage", "followEvents"],
    "sandbox": ["createSandbox", "takeSnapshot", "pullImage", "followEvents", "removeSandbox", "stopSandbox", "pauseSandbox"]
    + ["removeTerminal"],
}
CONFIGURATION = """
continue-on-failure = true
request-timeout = 30
# Nothing of it is found: that is meant.
warnings = false
hooks = "{hooks}"
headers = {{ X-API-Key = "{key}" }}
checks.positive_data_acceptance.enabled = false
# What is reserved says so.
checks.not_a_server_error.expected-statuses = ["2XX", "3XX", "4XX", 501]
phases.stateful.enabled = false
generation.database = "none"
{parameters}
[[operations]]
include-operation-id = {excluded}
enabled = false
"""


class Daemon:
    """A daemon at a port of its own."""

    def __init__(self, directory, environment):
        self.key = secrets.token_hex(32)
        key_file = os.path.join(directory, "key")
        with open(os.open(key_file, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
            file.write(self.key + "\n")
        self.process = subprocess.Popen(
            [os.environ["VOIDRUN_BIN"], "daemon", "--listen", "127.0.0.1:0", "--key-file", key_file],
            env=os.environ | {"XDG_RUNTIME_DIR": directory, "XDG_STATE_HOME": directory} | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        said = ""
        while "serves" not in said:
            line = self.process.stderr.readline()
            assert line, f"the daemon does not serve: {said}"
            said += line
        self.url = re.search(r"http://[0-9.:]+", said)[0]
        # A pipe that is full would hold it up.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def ask(self, method, path, body=None):
        headers = {"X-API-Key": self.key}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + "/v1" + path, data, headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=120) as answer:
            return json.load(answer)["data"]

    def end(self):
        self.process.terminate()
        self.process.wait(60)


def main(mode, examples, *options):
    with tempfile.TemporaryDirectory() as directory:
        home = {"VOIDRUN_HOME": os.path.join(directory, "home")} if mode == "nothing" else {}
        daemon = Daemon(directory, home)
        sandbox = None
        try:
            parameters = ""
            phases = "coverage,fuzzing"
            if mode == "sandbox":
                sandbox = daemon.ask("POST", "/sandboxes", {"image": "code"})["id"]
                session = daemon.ask("POST", f"/sandboxes/{sandbox}/pty/sessions", {})["sessionId"]
                parameters = f'parameters = {{ "path.id" = "{sandbox}", "path.session" = "{session}", "path.reference" = "code" }}'
                phases = "fuzzing"
            file = os.path.join(directory, "schemathesis.toml")
            with open(file, "w") as configuration:
                hooks = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hooks.py")
                excluded = json.dumps(EXCLUDED[mode])
                configuration.write(
                    CONFIGURATION.format(hooks=hooks, key=daemon.key, parameters=parameters, excluded=excluded)
                )
            command = [sys.executable, "-B", "-m", "schemathesis.cli", "--config-file", file, "run"]
            command += [daemon.url + "/openapi.json", "--url", daemon.url + "/v1"]
            command += ["--phases", phases, "--max-examples", examples, "--no-color", *options]
            status = subprocess.run(command, cwd=directory, env=os.environ | {"NO_PROXY": "127.0.0.1"}).returncode
            if sandbox:
                # It has been through a lot, and still does what it is asked to.
                result = daemon.ask("POST", f"/sandboxes/{sandbox}/exec", {"command": "echo", "args": ["well"]})
                assert result["stdout"] == "well\n", result
            assert daemon.process.poll() is None, "the daemon has ended"
        finally:
            if sandbox:
                daemon.ask("DELETE", f"/sandboxes/{sandbox}")
            daemon.end()
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
