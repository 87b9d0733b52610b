{{- define "ken-serve.fullname" -}}
{{- $both := printf "%s-%s" .Release.Name .Chart.Name -}}
{{- $derived := contains .Chart.Name .Release.Name | ternary .Release.Name $both -}}
{{- $name := .Values.fullnameOverride | default $derived -}}
{{- if gt (len $name) 40 -}}
{{- fail (printf (cat
    "the names of the release's objects would begin with %q, which has %d characters; expected 40 at"
    "most: set fullnameOverride")
    $name (len $name)) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf (cat
    "the names of the release's objects would begin with %q; expected lower-case letters, digits and"
    "hyphens, a letter first: set fullnameOverride")
    $name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/* The name of a component's object, and its label `app`. Takes a list: the component, and the root. */}}
{{- define "ken-serve.name" -}}
{{- $component := index . 0 -}}{{- $root := index . 1 -}}
{{- $full := include "ken-serve.fullname" $root -}}
{{- $derived := eq $component "ray-service" | ternary $full (printf "%s-%s" $full $component) -}}
{{- get $root.Values.names $component | default $derived -}}
{{- end -}}

{{/* Metadata of an object. Takes a dict: component, root, and optionally labels, annotations, a name. */}}
{{- define "ken-serve.metadata" -}}
name: {{ .name | default (include "ken-serve.name" (list .component .root)) }}
labels:
  app.kubernetes.io/part-of: ken-serve
  app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
  {{- with merge (dict) (.labels | default dict) .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Metadata of a pod template. Takes a dict: component, root, and optionally podLabels and podAnnotations. */}}
{{- define "ken-serve.podMetadata" -}}
labels:
  app: {{ include "ken-serve.name" (list .component .root) }}
  {{- with merge (dict) (.podLabels | default dict) .root.Values.commonLabels }}
  {{- if hasKey . "app" }}
  {{- fail (cat
      "found the label `app` among podLabels or commonLabels, by which the chart's selectors find pods;"
      "expected other labels") }}
  {{- end }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.podAnnotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* An image. Takes the map with repository, tag and digest. */}}
{{- define "ken-serve.imageName" -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag }}{{- end -}}
{{- end -}}

{{- define "ken-serve.image" -}}
{{- $tag := .Values.image.tag | default .Values.device -}}
{{- include "ken-serve.imageName" (merge (dict "tag" $tag) .Values.image) -}}
{{- end -}}

{{/* What every pod has: no token for the cluster's API, no root, no foreign variables. Takes a dict: user, group. */}}
{{- define "ken-serve.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false # they would add variables that begin with KEN_
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user }}
  runAsGroup: {{ .group }}
  fsGroup: {{ .group }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "ken-serve.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* Where pods are scheduled. Takes the map with nodeSelector, tolerations, affinity and priorityClassName. */}}
{{- define "ken-serve.placement" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "ken-serve.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* A variable whose value is in the Secret. Takes a list: the variable, the Secret's key, the root. */}}
{{- define "ken-serve.secretVariable" -}}
- name: {{ index . 0 }}
  valueFrom:
    secretKeyRef:
      name: {{ (index . 2).Values.secret.name }}
      key: {{ index . 1 }}
{{- end -}}

{{/* Where the checkpoint is, in workers. */}}
{{- define "ken-serve.basePath" -}}
{{- .Values.base.path -}}
{{- if .Values.base.download.enabled -}}
/{{ printf "%s@%s" .Values.base.download.repository .Values.base.download.revision | sha256sum | trunc 12 }}
{{- end -}}
{{- end -}}

{{- define "ken-serve.claim" -}}
{{- .Values.base.claim.name | default (include "ken-serve.name" (list "base" .)) -}}
{{- end -}}

{{/* Seconds during which a replica or a worker that ends still answers: load balancers need 15 to stop using it. */}}
{{- define "ken-serve.drainSeconds" -}}
{{- add 15 (int .Values.requestTimeoutSeconds) -}}
{{- end -}}

{{- define "ken-serve.maxSurgePercent" -}}
{{- $given := .Values.rollingUpdate.maxSurgePercent -}}
{{- if kindIs "invalid" $given -}}
{{- or .Values.autoscaling.enabled (gt (int .Values.spareWorkers) 0) | ternary 50 0 -}}
{{- else -}}
{{- int $given -}}
{{- end -}}
{{- end -}}

{{/* The fewest and the most workers: for all replicas, and for those that an update starts before it stops others. */}}
{{- define "ken-serve.minWorkers" -}}
{{- if .Values.autoscaling.enabled -}}
{{- int .Values.autoscaling.min -}}
{{- else -}}
{{- add (int .Values.replicas) (int .Values.spareWorkers) -}}
{{- end -}}
{{- end -}}

{{- define "ken-serve.maxWorkers" -}}
{{- $needed := int (include "ken-serve.minWorkers" .) -}}
{{- if .Values.autoscaling.enabled -}}
{{- $max := int .Values.autoscaling.max -}}
{{- $surge := div (add 99 (mul $max (int (include "ken-serve.maxSurgePercent" .)))) 100 -}}
{{- $needed = add $max $surge | int -}}
{{- end -}}
{{- $given := .Values.workers.maxWorkers -}}
{{- if kindIs "invalid" $given -}}
{{- $needed -}}
{{- else if lt (int $given) $needed -}}
{{- fail (printf (cat
    "workers.maxWorkers is %d, but replicas and a rolling update need up to %d workers; expected at least"
    "that, or null")
    (int $given) $needed) -}}
{{- else -}}
{{- int $given -}}
{{- end -}}
{{- end -}}

{{/* Bytes of a quantity with Mi, Gi or Ti, which the schema asks for where this is used. */}}
{{- define "ken-serve.bytes" -}}
{{- $unit := dict "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- mul (regexFind "^[0-9]+" . | int64) (get $unit (regexFind "[MGT]i$" .)) -}}
{{- end -}}
