{{/*
What the operator may do in a namespace, and which code needs it. A test compares these rules with the requests that
a run of every kind made: each verb here was used, and none was used that is not here.
*/}}
{{- define "gemmatune.rules" -}}
# get: observe.py, live before a write that depends on it. list: resync, rivals for an output. list, watch: kopf. delete:
# policies/ttl.py, after spec.ttlAfterFinished.
- apiGroups: [gemmatune.dev]
  resources: [gemmafinetunes]
  verbs: [get, list, watch, delete]
# patch: cluster.py apply_status, the one status write of a look. What is here is also what the trainer's Role grants.
- apiGroups: [gemmatune.dev]
  resources: [gemmafinetunes/status]
  verbs: [patch]
# update: no request of its own; the API server asks for it where an owner reference blocks the owner's deletion.
- apiGroups: [gemmatune.dev]
  resources: [gemmafinetunes/finalizers]
  verbs: [update]
# create, delete: reconcile.py act. get: whose a taken name is. list: observe.py. list, watch: kopf.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [create, get, list, watch, delete]
# list: observe.py, how pods ended. list, watch: kopf. delete: policies/cleanup.py, pods that outlived their Job.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, delete]
# list: observe.py, why a pod waits, or a Job makes none. list, watch: kopf. create: cluster.py emit.
- apiGroups: [""]
  resources: [events]
  verbs: [create, list, watch]
# list, watch: kopf, what autoscalers say of pods in the newer kind of Event.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [list, watch]
# get: observe.py, the namespace's defaults, when a spec is resolved; no other ConfigMap.
- apiGroups: [""]
  resources: [configmaps]
  resourceNames: [gemmatune-defaults]
  verbs: [get]
# create: manifests/service.py, attempts with several pods. get: reconcile.py, whose a taken name is.
- apiGroups: [""]
  resources: [services]
  verbs: [create, get]
# create: manifests/access.py, once per namespace; never changed afterwards. The API server lets nobody grant what
# they do not hold: the trainer's Role is `get gemmafinetunes` and `patch gemmafinetunes/status`, both above.
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [create]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [create]
{{- end -}}

{{/* What the operator may do in the whole cluster, also where it watches some namespaces only. */}}
{{- define "gemmatune.clusterRules" -}}
# get: observe.py, what a machine has where memory or disk ran out.
- apiGroups: [""]
  resources: [nodes]
  verbs: [get]
{{- end -}}

{{/* What several operators need in their own namespace to elect a leader. */}}
{{- define "gemmatune.leaseRules" -}}
# create, get, update: election.py, its own Lease and no other; a right to create cannot name what it creates.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "gemmatune.name" . }}]
  verbs: [get, update]
{{- end -}}
