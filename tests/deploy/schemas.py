"""What Kubernetes and KubeRay accept, as JSON Schema: the fields that deploy/kuberay uses, and no others.

Written from the CustomResourceDefinitions of KubeRay (helm-chart/kuberay-operator/crds at 017710c for RayCluster, whose
`authOptions` came with release 1.5.1; apis/ray/v1/rayjob_types.go for RayJob) and from the Kubernetes API v1.32. Every
object is closed: an API server would drop or refuse a field it does not know, so a typo fails here.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
FLAG: Schema = {"type": "boolean"}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}
QUANTITY: Schema = {
    "anyOf": [WHOLE, TEXT],
    "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?([0-9]+)))?$",
}


def mapping(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def listed(items: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": items, "minItems": least}


def closed(required: str = "", **fields: Schema) -> Schema:
    """An object with these fields and no others; `required` names some of them."""
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


def one_of(*words: str) -> Schema:
    return {"enum": list(words)}


LABEL_VALUE: Schema = {"type": "string", "pattern": r"^(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?$"}
LABELS = mapping(LABEL_VALUE)
METADATA = closed("name", name=NAME, namespace=NAME, labels=LABELS, annotations=mapping(TEXT))
POD_METADATA = closed(name=NAME, labels=LABELS, annotations=mapping(TEXT))
RESOURCES = closed(requests=mapping(QUANTITY), limits=mapping(QUANTITY))

ENV = closed(
    "name",
    name={"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
    value=TEXT,
    valueFrom=closed(secretKeyRef=closed("key", name=NAME, key=TEXT, optional=FLAG)),
)
PROBE = closed(
    exec=closed(command=listed(TEXT, 1)),
    initialDelaySeconds=COUNT,
    periodSeconds=COUNT,
    timeoutSeconds=COUNT,
    failureThreshold=COUNT,
)
CONTAINER = closed(
    "name",
    name=NAME,
    image=TEXT,
    command=listed(TEXT),
    args=listed(TEXT),
    env=listed(ENV),
    ports=listed(closed("containerPort", name=NAME, containerPort=PORT, protocol=one_of("TCP", "UDP"))),
    readinessProbe=PROBE,
    livenessProbe=PROBE,
    resources=RESOURCES,
    volumeMounts=listed(closed("name mountPath", name=NAME, mountPath=TEXT, readOnly=FLAG, subPath=TEXT)),
)
VOLUME = closed(
    "name",
    name=NAME,
    persistentVolumeClaim=closed("claimName", claimName=NAME, readOnly=FLAG),
    configMap=closed(name=NAME, defaultMode=WHOLE),
    emptyDir=closed(medium=one_of("", "Memory"), sizeLimit=QUANTITY),
)
POD = closed(
    "containers",
    containers=listed(CONTAINER, 1),
    volumes=listed(VOLUME),
    tolerations=listed(
        closed(
            key=TEXT,
            operator=one_of("Exists", "Equal"),
            value=TEXT,
            effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
        )
    ),
    nodeSelector=LABELS,
    terminationGracePeriodSeconds=COUNT,
    securityContext=closed(runAsNonRoot=FLAG, runAsUser=COUNT, runAsGroup=COUNT, fsGroup=COUNT),
)
TEMPLATE = closed(metadata=POD_METADATA, spec=POD)
CLAIM_SPEC = closed(
    "accessModes resources",
    accessModes=listed(one_of("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"), 1),
    storageClassName=TEXT,
    resources=closed("requests", requests=mapping(QUANTITY)),
)

# rayStartParams and labels are maps of strings in the definition: a number there is refused.
HEAD_GROUP = closed(
    "template",
    labels=LABELS,
    rayStartParams=mapping(TEXT),
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
    template=TEMPLATE,
)
WORKER_GROUP = closed(
    "groupName maxReplicas minReplicas template",
    groupName=NAME,
    labels=LABELS,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    idleTimeoutSeconds=COUNT,
    rayStartParams=mapping(TEXT),
    template=TEMPLATE,
)
RAY_CLUSTER_SPEC = closed(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=closed(mode=one_of("disabled", "token")),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=closed(
        idleTimeoutSeconds=COUNT,
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
        version=one_of("v1", "v2"),
    ),
    headGroupSpec=HEAD_GROUP,
    workerGroupSpecs=listed(WORKER_GROUP),
)
RAY_JOB_SPEC = closed(
    "",
    clusterSelector=mapping(TEXT),
    rayClusterSpec=RAY_CLUSTER_SPEC,
    entrypoint=TEXT,
    metadata=mapping(TEXT),
    runtimeEnvYAML=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode"),
    backoffLimit=COUNT,
    activeDeadlineSeconds=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    suspend=FLAG,
)


def resource(version: str, kind: str, required: str = "", **fields: Schema) -> Schema:
    head = {"apiVersion": {"const": version}, "kind": {"const": kind}, "metadata": METADATA}
    return closed(f"apiVersion kind metadata {required}", **head, **fields)


SCHEMAS: dict[str, Schema] = {
    "ConfigMap": resource("v1", "ConfigMap", data=mapping(TEXT)),
    "PersistentVolumeClaim": resource("v1", "PersistentVolumeClaim", "spec", spec=CLAIM_SPEC),
    "Service": resource(
        "v1",
        "Service",
        "spec",
        spec=closed(
            clusterIP=TEXT,
            type=one_of("ClusterIP", "NodePort", "LoadBalancer"),
            selector=LABELS,
            ports=listed(closed("port", name=NAME, port=PORT, targetPort={"anyOf": [PORT, NAME]})),
        ),
    ),
    "StatefulSet": resource(
        "apps/v1",
        "StatefulSet",
        "spec",
        spec=closed(
            "serviceName selector template",
            serviceName=NAME,
            replicas=COUNT,
            selector=closed(matchLabels=LABELS),
            template=TEMPLATE,
            volumeClaimTemplates=listed(closed("metadata spec", metadata=METADATA, spec=CLAIM_SPEC)),
        ),
    ),
    "RayCluster": resource("ray.io/v1", "RayCluster", "spec", spec=RAY_CLUSTER_SPEC),
    "RayJob": resource("ray.io/v1", "RayJob", "spec", spec=RAY_JOB_SPEC),
}
