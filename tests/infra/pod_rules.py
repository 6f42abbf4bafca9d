"""What makes a pod template sound, safe and placeable. A rule yields a sentence per breach."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.infra.render import Manifest, PodTemplate, of_kind, pods, quantity, ray_cluster, ray_pods

SECRET = re.compile(r"secret|password|token|credential|api_?key|access_?key", re.IGNORECASE)
CAPACITY = "poisoncam/capacity"
NODE = "poisoncam/node"
# Made by the platform's own hands, never by these manifests.
FROM_OUTSIDE = {"Secret": {"poisoncam-redis", "poisoncam-s3"}}

Breaches = Iterator[str]


def requests_within_limits(manifests: list[Manifest]) -> Breaches:
    for pod in pods(manifests):
        for container in pod.containers:
            resources = container.get("resources", {})
            requests, limits = resources.get("requests", {}), resources.get("limits", {})
            where = f"{pod.where}, {container['name']}"
            for key in ("cpu", "memory"):
                if key not in requests or key not in limits:
                    yield f"{where}: {key} needs a request and a limit"
            for key, value in requests.items():
                if key in limits and quantity(value) > quantity(limits[key]):
                    yield f"{where}: requests more {key} than its limit"


def gpu_requests_equal_limits(manifests: list[Manifest]) -> Breaches:
    for pod in pods(manifests):
        for container in pod.containers:
            resources = container.get("resources", {})
            requests, limits = resources.get("requests", {}), resources.get("limits", {})
            for key in {k for k in {*requests, *limits} if k.endswith("/gpu")}:
                if str(requests.get(key)) != str(limits.get(key)):
                    yield f"{pod.where}, {container['name']}: {key} requested and limited differ"


def fits_its_node(manifests: list[Manifest]) -> Breaches:
    """The pool's smallest node is stated beside each Ray pod."""
    for pod in ray_pods(manifests):
        stated = pod.metadata.get("annotations", {}).get(NODE)
        if stated is None:
            yield f"{pod.where}: say what its node has: {NODE}"
            continue
        node = {key: quantity(value) for key, value in (item.split("=") for item in stated.split(","))}
        for key in ("cpu", "memory", "nvidia.com/gpu"):
            asked = sum(quantity(c["resources"]["requests"].get(key, 0)) for c in pod.containers)
            if asked > node.get(key, 0):
                yield f"{pod.where}: asks for more {key} than its node has ({stated})"


def one_gpu_pod_a_node(manifests: list[Manifest]) -> Breaches:
    for pod in ray_pods(manifests):
        if "nvidia.com/gpu" not in pod.spec["containers"][0]["resources"]["limits"]:
            continue
        terms = (
            pod.spec.get("affinity", {})
            .get("podAntiAffinity", {})
            .get("requiredDuringSchedulingIgnoredDuringExecution", [])
        )
        labels = pod.metadata["labels"].items()
        if not any(
            term["topologyKey"] == "kubernetes.io/hostname"
            and term["labelSelector"]["matchLabels"].items() <= labels
            for term in terms
        ):
            yield f"{pod.where}: two of them may share a node"


def shared_memory_holds_the_store(manifests: list[Manifest]) -> Breaches:
    for pod in ray_pods(manifests):
        ray = pod.spec["containers"][0]
        mounts = {mount["mountPath"]: mount["name"] for mount in ray.get("volumeMounts", [])}
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        shm = volumes.get(mounts.get("/dev/shm", ""), {}).get("emptyDir", {})
        if shm.get("medium") != "Memory" or "sizeLimit" not in shm:
            yield f"{pod.where}: /dev/shm wants a Memory volume with a size"
            continue
        store, size = float(pod.start_params["object-store-memory"]), quantity(shm["sizeLimit"])
        if store > size:
            yield f"{pod.where}: the object store does not fit in /dev/shm"
        if size > 0.5 * quantity(ray["resources"]["limits"]["memory"]):
            yield f"{pod.where}: /dev/shm takes more than half of the memory"


def mounts_have_volumes(manifests: list[Manifest]) -> Breaches:
    claims = {
        claim["metadata"]["name"]
        for manifest in of_kind(manifests, "StatefulSet")
        for claim in manifest["spec"].get("volumeClaimTemplates", [])
    }
    for pod in pods(manifests):
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
        for container in pod.containers:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes | (claims if pod.role == "pod" else set()):
                    yield f"{pod.where}: {mount['mountPath']} mounts {mount['name']}, which is no volume"


def references_exist(manifests: list[Manifest]) -> Breaches:
    there = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    there |= {(kind, name) for kind, names in FROM_OUTSIDE.items() for name in names}
    for pod in pods(manifests):
        wanted = (
            [("ServiceAccount", pod.spec["serviceAccountName"])] if "serviceAccountName" in pod.spec else []
        )
        for container in pod.containers:
            for source in container.get("envFrom", []):
                wanted += [("ConfigMap", ref["name"]) for k, ref in source.items() if k == "configMapRef"]
                wanted += [("Secret", ref["name"]) for k, ref in source.items() if k == "secretRef"]
            for entry in container.get("env", []):
                source = entry.get("valueFrom", {})
                wanted += [("Secret", source["secretKeyRef"]["name"])] if "secretKeyRef" in source else []
        for kind, name in wanted:
            if (kind, name) not in there:
                yield f"{pod.where}: there is no {kind} {name}"


def images_are_pinned(manifests: list[Manifest]) -> Breaches:
    for pod in pods(manifests):
        for container in pod.containers:
            name = container["image"].rsplit("/", 1)[-1]
            tag = name.partition(":")[2]
            if "@sha256:" not in name and (not re.search(r"\d+\.\d+\.\d+", tag) or "latest" in tag):
                yield f"{pod.where}: image {container['image']} is not pinned"


def restricted(manifests: list[Manifest]) -> Breaches:
    """Kubernetes' 'restricted' standard, and a read-only root file system."""
    for pod in pods(manifests):
        own = pod.spec.get("securityContext", {})
        if any(pod.spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{pod.where}: shares the host's namespaces"
        if any("hostPath" in volume for volume in pod.spec.get("volumes", [])):
            yield f"{pod.where}: mounts the host's files"
        for container in pod.containers:
            context = own | container.get("securityContext", {})
            wrong = [
                complaint
                for complaint, right in {
                    "is privileged": not context.get("privileged"),
                    "may run as root": context.get("runAsNonRoot") is True and context.get("runAsUser") != 0,
                    "has no seccomp profile": context.get("seccompProfile") == {"type": "RuntimeDefault"},
                    "may escalate": context.get("allowPrivilegeEscalation") is False,
                    "keeps capabilities": context.get("capabilities") == {"drop": ["ALL"]},
                    "may write its image": context.get("readOnlyRootFilesystem") is True,
                }.items()
                if not right
            ]
            for complaint in wrong:
                yield f"{pod.where}, {container['name']}: {complaint}"


def no_secret_in_clear(manifests: list[Manifest]) -> Breaches:
    if of_kind(manifests, "Secret"):
        yield "Secrets are made on the cluster, never committed"
    for manifest in of_kind(manifests, "ConfigMap"):
        yield from (f"ConfigMap key {key}" for key in manifest.get("data", {}) if SECRET.search(key))
    for pod in pods(manifests):
        for container in pod.containers:
            for entry in container.get("env", []):
                if SECRET.search(entry["name"]) and "value" in entry:
                    yield f"{pod.where}: {entry['name']} in clear text"
    if "value" in ray_cluster(manifests).get("gcsFaultToleranceOptions", {}).get("redisPassword", {}):
        yield "Redis' password in clear text"


def token_only_where_needed(manifests: list[Manifest]) -> Breaches:
    for pod in pods(manifests):
        needed = pod.role == "head" and ray_cluster(manifests).get("enableInTreeAutoscaling", False)
        if pod.spec.get("automountServiceAccountToken", True) and not needed:
            yield f"{pod.where}: has Kubernetes' token without a use for it"


def only_workers_on_spot(manifests: list[Manifest]) -> Breaches:
    spot = any(is_spot(pod) for pod in ray_pods(manifests))
    for pod in pods(manifests):
        if pod.role == "worker":
            continue
        if is_spot(pod) or tolerates_spot(pod):
            yield f"{pod.where}: must not run on spot nodes"
        elif spot and pod.spec.get("nodeSelector", {}).get(CAPACITY) != "on-demand":
            yield f"{pod.where}: must select nodes that stay"


def is_spot(pod: PodTemplate) -> bool:
    return pod.spec.get("nodeSelector", {}).get(CAPACITY) == "spot"


def tolerates_spot(pod: PodTemplate) -> bool:
    return any(t.get("key", CAPACITY) == CAPACITY for t in pod.spec.get("tolerations", []))


def workers_drain(manifests: list[Manifest]) -> Breaches:
    for pod in ray_pods(manifests):
        if pod.role != "worker":
            continue
        hook = (
            pod.spec["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        )
        if not hook or not hook[-1].isdigit():
            yield f"{pod.where}: no preStop that drains it"
        elif int(hook[-1]) >= pod.spec.get("terminationGracePeriodSeconds", 30):
            yield f"{pod.where}: killed before its {hook[-1]} s to drain are over"


def closed_network(manifests: list[Manifest]) -> Breaches:
    policies = [policy["spec"] for policy in of_kind(manifests, "NetworkPolicy")]
    for pod in pods(manifests):
        labels = pod.metadata.get("labels", {}).items()
        over = [p for p in policies if p["podSelector"].get("matchLabels", {}).items() <= labels]
        for way in ("Ingress", "Egress"):
            if not any(way in policy["policyTypes"] for policy in over):
                yield f"{pod.where}: {way} is open"
        if any("from" not in rule for policy in over for rule in policy.get("ingress", [])):
            yield f"{pod.where}: a rule lets everyone in"


RULES = (
    requests_within_limits, gpu_requests_equal_limits, fits_its_node, one_gpu_pod_a_node,
    shared_memory_holds_the_store, mounts_have_volumes, references_exist, images_are_pinned, restricted,
    no_secret_in_clear, token_only_where_needed, only_workers_on_spot, workers_drain, closed_network,
)  # fmt: skip
