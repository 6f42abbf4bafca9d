"""Mistakes planted in a rendered manifest, each with the rule that must catch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.infra.render import Manifest, of_kind, ray_job

SPOT, SCALING, QUEUE = "overlays/gpu-spot", "overlays/autoscaling", "overlays/kueue"


@dataclass(frozen=True)
class Mutant:
    name: str
    rule: str
    plant: Callable[[list[Manifest]], Any]
    overlay: str = SPOT


def job(m: list[Manifest]) -> Manifest:
    return ray_job(m)["spec"]


def cluster(m: list[Manifest]) -> Manifest:
    return job(m)["rayClusterSpec"]


def group(m: list[Manifest]) -> Manifest:
    return cluster(m)["workerGroupSpecs"][0]


def head_pod(m: list[Manifest]) -> Manifest:
    return cluster(m)["headGroupSpec"]["template"]["spec"]


def worker_pod(m: list[Manifest]) -> Manifest:
    return group(m)["template"]["spec"]


def head(m: list[Manifest]) -> Manifest:
    return head_pod(m)["containers"][0]


def worker(m: list[Manifest]) -> Manifest:
    return worker_pod(m)["containers"][0]


def redis_pod(m: list[Manifest]) -> Manifest:
    return of_kind(m, "StatefulSet")[0]["spec"]["template"]["spec"]


def policy(m: list[Manifest]) -> Manifest:
    return next(p for p in of_kind(m, "NetworkPolicy") if p["metadata"]["name"] == "poisoncam")["spec"]


def rules_instead_of_shutdown(**changes: Any) -> Callable[[list[Manifest]], Any]:
    rule = {"policy": "DeleteCluster", "condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": 60}}
    return lambda m: job(m).update({"deletionStrategy": {"deletionRules": [rule]}} | changes)


def secret(m: list[Manifest]) -> None:
    worker(m).setdefault("env", []).append({"name": "AWS_SECRET_ACCESS_KEY", "value": "wJalrXUt"})


def second_group(m: list[Manifest]) -> None:
    cluster(m)["workerGroupSpecs"].append(group(m))


def clear_password(m: list[Manifest]) -> None:
    cluster(m)["gcsFaultToleranceOptions"]["redisPassword"] = {"value": "hunter2"}


def no_drain(m: list[Manifest]) -> None:
    del worker(m)["lifecycle"]


CRD = "crd_schema"
MUTANTS = (
    Mutant("name too long", "name_is_short", lambda m: ray_job(m)["metadata"].update(name="p" * 48)),
    Mutant("name no label", "name_is_short", lambda m: ray_job(m)["metadata"].update(name="9_lives")),
    Mutant("minReplicas > maxReplicas", "replicas_in_order", lambda m: group(m).update(minReplicas=9)),
    Mutant("replicas > maxReplicas", "replicas_in_order", lambda m: group(m).update(replicas=9)),
    Mutant("two groups of one name", "group_names_differ", second_group),
    Mutant(
        "ttl without shutdown",
        "shutdown_where_wanted",
        lambda m: job(m).update(shutdownAfterJobFinishes=False),
    ),
    Mutant("deletionRules with shutdown", "shutdown_where_wanted", rules_instead_of_shutdown()),
    Mutant(
        "suspend without shutdown",
        "shutdown_where_wanted",
        rules_instead_of_shutdown(shutdownAfterJobFinishes=False, ttlSecondsAfterFinished=0),
        QUEUE,
    ),
    Mutant(
        "backoffLimit with clusterSelector",
        "one_cluster",
        lambda m: job(m).update(clusterSelector={"ray.io/cluster": "shared"}),
    ),
    Mutant("unknown submissionMode", "submission", lambda m: job(m).update(submissionMode="K8SJobMode")),
    Mutant(
        "InteractiveMode with backoffLimit",
        "submission",
        lambda m: job(m).update(submissionMode="InteractiveMode"),
    ),
    Mutant(
        "SidecarMode with a submitter", "submission", lambda m: job(m).update(submissionMode="SidecarMode")
    ),
    Mutant(
        "submitter tries again", "submission", lambda m: job(m).update(submitterConfig={"backoffLimit": 2})
    ),
    Mutant("no deadline", "ends_by_itself", lambda m: job(m).pop("activeDeadlineSeconds")),
    Mutant(
        "runtimeEnvYAML does not parse",
        "runtime_env_parses",
        lambda m: job(m).update(runtimeEnvYAML="env_vars: {"),
    ),
    Mutant(
        "runtimeEnvYAML misspelt", "runtime_env_parses", lambda m: job(m).update(runtimeEnvYAML="env_var: {}")
    ),
    Mutant(
        "runtimeEnvYAML number",
        "runtime_env_parses",
        lambda m: job(m).update(runtimeEnvYAML="env_vars: {PYTHONUNBUFFERED: 1}"),
    ),
    Mutant(
        "resources in two places",
        "resources_stated_once",
        lambda m: cluster(m)["headGroupSpec"].update(resources={"CPU": "2"}),
    ),
    Mutant(
        "restartPolicy Always with autoscaler v2",
        "autoscaler",
        lambda m: worker_pod(m).update(restartPolicy="Always"),
        SCALING,
    ),
    Mutant(
        "autoscaler without idle timeout",
        "autoscaler",
        lambda m: cluster(m)["autoscalerOptions"].pop("idleTimeoutSeconds"),
        SCALING,
    ),
    Mutant(
        "autoscaler without token",
        "autoscaler",
        lambda m: head_pod(m).update(automountServiceAccountToken=False),
        SCALING,
    ),
    Mutant("token with an old Ray", "token_is_on", lambda m: cluster(m).update(rayVersion="2.51.2")),
    Mutant("token off", "token_is_on", lambda m: cluster(m).pop("authOptions")),
    Mutant("Redis' password in clear", "no_secret_in_clear", clear_password),
    Mutant(
        "Redis' password as a parameter",
        "gcs_fault_tolerance",
        lambda m: cluster(m)["headGroupSpec"]["rayStartParams"].update({"redis-password": "x"}),
    ),
    Mutant("queue without suspend", "queued_jobs_wait", lambda m: job(m).update(suspend=False), QUEUE),
    Mutant(
        "suspend without queue", "queued_jobs_wait", lambda m: ray_job(m)["metadata"].pop("labels"), QUEUE
    ),
    Mutant(
        "queue with autoscaler",
        "queued_jobs_wait",
        lambda m: cluster(m).update(enableInTreeAutoscaling=True, autoscalerOptions={}),
        QUEUE,
    ),
    Mutant("rayVersion ≠ project", "one_ray_version", lambda m: cluster(m).update(rayVersion="2.61.0")),
    Mutant(
        "rayVersion ≠ image",
        "one_ray_version",
        lambda m: worker(m).update(image="poisoncam-ray:0.1.0-ray2.59.0-cuda"),
    ),
    Mutant(
        "head takes work",
        "head_only_leads",
        lambda m: cluster(m)["headGroupSpec"]["rayStartParams"].update({"num-cpus": "4"}),
    ),
    Mutant("too few workers for the preset", "job_fits_the_cluster", lambda m: group(m).update(replicas=7)),
    Mutant(
        "too few workers at most",
        "job_fits_the_cluster",
        lambda m: group(m).update(maxReplicas=7),
        SCALING,
    ),
    Mutant(
        "more actors than GPUs",
        "job_fits_the_cluster",
        lambda m: job(m).update(entrypoint=job(m)["entrypoint"] + " resources.actors=9"),
    ),
    Mutant(
        "requests > limits",
        "requests_within_limits",
        lambda m: worker(m)["resources"]["requests"].update(memory="97Gi"),
    ),
    Mutant("no limits", "requests_within_limits", lambda m: redis_pod(m)["containers"][0].pop("resources")),
    Mutant(
        "GPU request ≠ limit",
        "gpu_requests_equal_limits",
        lambda m: worker(m)["resources"]["limits"].update({"nvidia.com/gpu": "2"}),
    ),
    Mutant(
        "worker memory > node",
        "fits_its_node",
        lambda m: [worker(m)["resources"][k].update(memory="128Gi") for k in ("requests", "limits")],
    ),
    Mutant(
        "autoscaler beside the head > node",
        "fits_its_node",
        lambda m: cluster(m)["autoscalerOptions"]["resources"]["requests"].update(cpu="2"),
        SCALING,
    ),
    Mutant("two GPU workers a node", "one_gpu_pod_a_node", lambda m: worker_pod(m).pop("affinity")),
    Mutant(
        "object store > /dev/shm",
        "shared_memory_holds_the_store",
        lambda m: group(m)["rayStartParams"].update({"object-store-memory": "30000000000"}),
    ),
    Mutant(
        "/dev/shm on disk",
        "shared_memory_holds_the_store",
        lambda m: worker_pod(m)["volumes"][1]["emptyDir"].pop("medium"),
    ),
    Mutant("mount without volume", "mounts_have_volumes", lambda m: worker_pod(m)["volumes"].pop(0)),
    Mutant(
        "ConfigMap that is not there",
        "references_exist",
        lambda m: head(m)["envFrom"].append({"configMapRef": {"name": "poisoncam-setings"}}),
    ),
    Mutant("image latest", "images_are_pinned", lambda m: worker(m).update(image="poisoncam-ray:latest")),
    Mutant(
        "image without tag", "images_are_pinned", lambda m: head(m).update(image="registry:5000/poisoncam")
    ),
    Mutant(
        "image by major", "images_are_pinned", lambda m: redis_pod(m)["containers"][0].update(image="redis:7")
    ),
    Mutant("privileged", "restricted", lambda m: worker(m)["securityContext"].update(privileged=True)),
    Mutant("root", "restricted", lambda m: worker_pod(m)["securityContext"].update(runAsUser=0)),
    Mutant("root allowed", "restricted", lambda m: redis_pod(m)["securityContext"].pop("runAsNonRoot")),
    Mutant("no seccomp", "restricted", lambda m: head_pod(m)["securityContext"].pop("seccompProfile")),
    Mutant("escalation", "restricted", lambda m: head(m)["securityContext"].pop("allowPrivilegeEscalation")),
    Mutant("capabilities", "restricted", lambda m: head(m)["securityContext"].pop("capabilities")),
    Mutant(
        "writable image", "restricted", lambda m: worker(m)["securityContext"].pop("readOnlyRootFilesystem")
    ),
    Mutant(
        "autoscaler unconfined",
        "restricted",
        lambda m: cluster(m)["autoscalerOptions"].pop("securityContext"),
        SCALING,
    ),
    Mutant("host network", "restricted", lambda m: head_pod(m).update(hostNetwork=True)),
    Mutant("secret in clear text", "no_secret_in_clear", secret),
    Mutant(
        "secret in the settings",
        "no_secret_in_clear",
        lambda m: of_kind(m, "ConfigMap")[0]["data"].update(AWS_SECRET_ACCESS_KEY="x"),
    ),
    Mutant(
        "Kubernetes' token for workers",
        "token_only_where_needed",
        lambda m: worker_pod(m).pop("automountServiceAccountToken"),
    ),
    Mutant("head on spot", "only_workers_on_spot", lambda m: head_pod(m).update(nodeSelector={})),
    Mutant(
        "head tolerates spot",
        "only_workers_on_spot",
        lambda m: head_pod(m).update(tolerations=[{"operator": "Exists"}]),
    ),
    Mutant("no drain", "workers_drain", no_drain),
    Mutant(
        "killed while draining", "workers_drain", lambda m: worker_pod(m).pop("terminationGracePeriodSeconds")
    ),
    Mutant(
        "policy misses the pods",
        "closed_network",
        lambda m: policy(m)["podSelector"].update(matchLabels={"a": "b"}),
    ),
    Mutant("everyone may come in", "closed_network", lambda m: policy(m)["ingress"].append({})),
    Mutant("misspelt field", CRD, lambda m: group(m).update(maxReplica=8)),
    Mutant("misspelt field in the pod", CRD, lambda m: worker(m).update(imagePullPolice="Never")),
    Mutant("wrong type", CRD, lambda m: group(m).update(replicas="8")),
    Mutant("unknown auth mode", CRD, lambda m: cluster(m).update(authOptions={"mode": "tokens"})),
    Mutant("two containers' ports alike", CRD, lambda m: head(m)["ports"].append(head(m)["ports"][0])),
    Mutant("misspelt policy", "core_schema", lambda m: policy(m).update(policyType=["Ingress"])),
    Mutant("port out of type", "core_schema", lambda m: redis_pod(m)["containers"][0].update(ports="6379")),
)
