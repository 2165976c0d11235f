"""The real binary, run with what the manifests give a pod: its arguments, its settings, its secrets as files."""

import json
import re
import secrets
import socket
import subprocess
import time
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.request import urlopen

PATIENCE_SECONDS = 60
# `shopbell config` lists any OTEL_* that is set: these OpenTelemetry's library reads.
OF_OPENTELEMETRY = {"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_RESOURCE_ATTRIBUTES"}


class Pod:
    """One workload's container, with its files below a folder of ours."""

    def __init__(self, objects, workload, folder):
        self.name = workload["metadata"]["name"]
        pod = workload["spec"]["template"]["spec"]
        self.container = pod["containers"][0]
        self.files, self.folders = set(), []
        mounts = {mount["name"]: mount["mountPath"] for mount in self.container["volumeMounts"]}
        for volume in pod["volumes"]:
            if "items" in volume["secret"]:
                self.files |= {f"{mounts[volume['name']]}/{item['path']}" for item in volume["secret"]["items"]}
            else:
                # Every key of the secret is a file, also one that is added later.
                self.folders.append(f"{mounts[volume['name']]}/")
        self.folder = folder
        self.environment = dict(objects.settings()) if self.container.get("envFrom") else {}
        for variable in self.container.get("env", []):
            self.environment[variable["name"]] = expanded(variable, self.environment)
        for name, path in self.environment.items():
            if name.endswith("_FILE") and path not in self.files and not path.startswith(tuple(self.folders)):
                raise SystemExit(f"manifests: {self.name}: {name} is {path}, where no secret is mounted")

    def give(self, **given):
        """Puts secrets where the variables `NAME_FILE` look for them."""
        for name, value in given.items():
            path = self.environment.get(f"{name}_FILE")
            if path is None:
                continue
            file = self.folder / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{value}\n")
            self.environment[f"{name}_FILE"] = str(file)

    def names(self):
        """The variables meant for the program: not those that are only there to be put into others."""
        inner = {name for variable in self.container.get("env", []) for name in references(variable)}
        return self.environment.keys() - inner


def references(variable):
    return re.findall(r"\$\((\w+)\)", variable.get("value", ""))


def expanded(variable, environment):
    if "valueFrom" in variable:
        return "downward"
    return re.sub(r"\$\((\w+)\)", lambda name: environment[name[1]], variable["value"])


class Program:
    """The binary; nothing of our own environment reaches it."""

    def __init__(self, binary):
        self.binary = binary

    def run(self, *arguments, **environment):
        return subprocess.run([self.binary, *arguments], env=environment, capture_output=True, text=True, timeout=120)

    def must(self, what, *arguments, **environment):
        result = self.run(*arguments, **environment)
        if result.returncode != 0:
            raise SystemExit(f"manifests: {what}: shopbell {' '.join(arguments)} fails:\n{result.stdout}{result.stderr}")
        return result.stdout

    @contextmanager
    def serving(self, pod, log):
        """The program as the pod runs it, but on free ports of this machine; gives both ports."""
        public, operations = free_port(), free_port()
        environment = {
            **pod.environment,
            "SHOPBELL_LISTEN": f"127.0.0.1:{public}",
            "SHOPBELL_OPS_LISTEN": f"127.0.0.1:{operations}",
        }
        with log.open("w") as output:
            process = subprocess.Popen([self.binary, *pod.container["args"]], env=environment, stdout=output, stderr=output)
        try:
            yield public, operations
        finally:
            process.terminate()
            if process.wait(timeout=PATIENCE_SECONDS) != 0:
                raise SystemExit(f"manifests: {pod.name} did not end well, see {log}")


def settings_complaints(program, pod, jwt_secret):
    """Names that the program does not read, values that it does not take, ports that it does not listen on."""
    try:
        # The roles share their settings, so a name is right if either half reads it; the ports are the role's own.
        whole = told(program, [], {"SHOPBELL_JWT_HS256_SECRET": jwt_secret} | without(pod, "SHOPBELL_JWT_HS256_SECRET_FILE"))
        of_role = told(program, pod.container["args"][1:], pod.environment)
    except Refused as refusal:
        yield str(refusal)
        return
    for name in sorted(pod.names()):
        read = whole.get(name.removesuffix("_FILE"), {"origin": "default"})["origin"] != "default"
        if not read or (name.startswith("OTEL_") and name not in OF_OPENTELEMETRY):
            yield f"sets {name}, which the program does not read"
    settings = [of_role[name] for name in ("SHOPBELL_LISTEN", "SHOPBELL_OPS_LISTEN") if name in of_role]
    listens = sorted(int(setting["value"].rpartition(":")[2]) for setting in settings)
    ports = sorted(port["containerPort"] for port in pod.container["ports"])
    if listens != ports:
        yield f"has the ports {ports}, and the program listens on {listens}"


class Refused(Exception):
    """What the program said of its environment."""


def told(program, arguments, environment):
    """Each setting that the program would run on."""
    result = program.run("config", *arguments, "--output", "json", **environment)
    if result.returncode != 0:
        raise Refused(result.stderr.strip())
    return {setting["variable"]: setting for setting in map(json.loads, result.stdout.splitlines())}


def without(pod, name):
    return {key: value for key, value in pod.environment.items() if key != name}


def probe_complaints(pod, operations):
    """Each probe as the kubelet sends it; at the port that the name means, which the caller moved."""
    ports = {port["name"]: port["containerPort"] for port in pod.container["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        request = pod.container[probe]["httpGet"]
        if ports.get(request["port"]) != 9090:
            yield f"has a {probe} on {request['port']}, which is not the operations port"
        status, body = eventually(f"{pod.name} answers {request['path']}", ask, operations, request["path"])
        if status != 200:
            yield f"has a {probe} that asks for {request['path']} and is answered {status}: {body}"


def ask(port, path):
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return None


def eventually(what, look, *at):
    """What a look shows, as soon as it shows anything."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if seen := look(*at):
            return seen
        time.sleep(0.1)
    raise SystemExit(f"manifests: not within {PATIENCE_SECONDS} s: {what}")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def new_secret():
    return secrets.token_hex(24)
