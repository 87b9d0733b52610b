{{/* The variables of Ray's containers: Ray's own, HAProxy's and the store's. */}}
{{- define "ken-serve.ownVariables" -}}
{{- range .Files.Get "files/ray_variables.yaml" | fromYamlArray }}
{{- $value := .value }}
{{- if eq .name "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S" }}{{- $value = add 5 (int $.Values.requestTimeoutSeconds) | toString }}{{- end }}
- {name: {{ .name }}, value: {{ $value | quote }}}
{{- end }}
- {name: KEN_DATA_DIR, value: /var/lib/ken}
- {name: NUMBA_CACHE_DIR, value: /var/lib/ken/numba}
{{- range $setting := list "namespace" "placement" "max_connections" "max_connections_per_source" }}
{{- if hasKey $.Values.settings $setting }}
- {name: KEN_{{ upper $setting }}, value: {{ get $.Values.settings $setting | toJson | trimAll "\"" | quote }}} # HAProxy's
{{- end }}
{{- end }}
{{ if and .Values.store.bundled (not .Values.store.urlFromSecret) -}}
{{ include "ken-serve.secretVariable" (list "STORE_PASSWORD" "redis-password" .) }}
- {name: KEN_REDIS_URL, value: "redis://:$(STORE_PASSWORD)@{{ include "ken-serve.name" (list "redis" .) }}:6379/0"}
{{- else -}}
{{ include "ken-serve.secretVariable" (list "KEN_REDIS_URL" "redis-url" .) }}
{{- end }}
{{ include "ken-serve.secretVariable" (list "KEN_ADMIN_TOKEN" "admin-token" .) }}
{{- end -}}

{{/* All variables of a container. Takes a dict: root, group (head or workers). */}}
{{- define "ken-serve.variables" -}}
{{- $own := include "ken-serve.ownVariables" .root | trim -}}
{{- $taken := list -}}
{{- range fromYamlArray $own }}{{- $taken = append $taken .name }}{{- end -}}
env:
  {{- $own | nindent 2 }}
  {{- range $variable := get .root.Values .group | dig "env" list }}
  {{- if has $variable.name $taken }}
  {{- fail (printf "%s.env sets %s, which the chart sets; expected other names (settings of the server go into settings)" $.group $variable.name) }}
  {{- end }}
  - {{ toYaml $variable | nindent 4 | trim }}
  {{- end }}
{{- end -}}

{{/* Ray's own health, not the application's: the operator submits the application when the head is ready. */}}
{{- define "ken-serve.rayHealth" -}}
httpGet: {path: /api/healthz, port: 52365}
{{- end -}}

{{/* Takes a dict: logs, tmp, data: the sizes of the volumes; logs is empty for workers. */}}
{{- define "ken-serve.ownVolumes" -}}
- name: home
  emptyDir: {sizeLimit: 1Gi}
- name: tmp
  emptyDir: {sizeLimit: {{ .tmp }}}
- name: data
  emptyDir: {sizeLimit: {{ .data }}}
{{- end -}}

{{- define "ken-serve.ownMounts" -}}
- {name: home, mountPath: /home/ken}
- {name: tmp, mountPath: /tmp}
- {name: data, mountPath: /var/lib/ken}
{{- end -}}

{{- define "ken-serve.headPod" -}}
{{- $group := .Values.head -}}
metadata:
  {{- include "ken-serve.podMetadata" (dict "app" (include "ken-serve.name" (list "ray" .)) "root" . "podLabels" $group.podLabels "podAnnotations" $group.podAnnotations) | nindent 2 }}
spec:
  {{- include "ken-serve.podSecurity" (dict "user" 10001 "group" 10001) | nindent 2 }}
  {{- with include "ken-serve.pullSecrets" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with include "ken-serve.placement" $group | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with $group.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: ray-head
      image: {{ include "ken-serve.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      ports:
        - name: gcs-server
          containerPort: 6379
        - name: dashboard
          containerPort: 8265
        - name: serve
          containerPort: 8000
      {{- include "ken-serve.variables" (dict "root" . "group" "head") | nindent 6 }}
      # Ray's own health, not the application's: the operator submits the application when the head is ready
      startupProbe:
        {{- include "ken-serve.rayHealth" . | nindent 8 }}
        periodSeconds: 3
        timeoutSeconds: 3
        failureThreshold: 60
      readinessProbe:
        {{- include "ken-serve.rayHealth" . | nindent 8 }}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: 6
      livenessProbe:
        {{- include "ken-serve.rayHealth" . | nindent 8 }}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 12
      resources:
        {{- toYaml $group.resources | nindent 8 }}
      {{- include "ken-serve.containerSecurity" . | nindent 6 }}
      volumeMounts:
        {{- include "ken-serve.ownMounts" . | nindent 8 }}
        {{- if .Values.autoscaling.enabled }}
        - {name: ray-logs, mountPath: /tmp/ray}
        {{- end }}
  volumes:
    {{- include "ken-serve.ownVolumes" (dict "tmp" $group.tmpVolume "data" "1Gi") | nindent 4 }}
    {{- if .Values.autoscaling.enabled }}
    - name: ray-logs # KubeRay's name for it: Ray's head shows what the autoscaler writes there
      emptyDir: {sizeLimit: {{ $group.logVolume }}}
    - name: autoscaler-tmp
      emptyDir: {sizeLimit: 256Mi}
    # mounted into the autoscaler's container only: it changes the number of workers through the cluster's API
    - name: autoscaler-token
      projected:
        sources:
          - serviceAccountToken: {path: token, expirationSeconds: 3607}
          - configMap:
              name: kube-root-ca.crt
              items: [{key: ca.crt, path: ca.crt}]
          - downwardAPI:
              items:
                - path: namespace
                  fieldRef: {fieldPath: metadata.namespace}
    {{- end }}
{{- end -}}

{{/* The container that KubeRay adds beside the head. It takes the head's image; no `image` here, so that one that
kustomize sets in the head's container counts for both. */}}
{{- define "ken-serve.autoscaler" -}}
enableInTreeAutoscaling: true
autoscalerOptions:
  version: v2
  idleTimeoutSeconds: {{ int .Values.autoscaling.idleTimeoutSeconds }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  resources:
    {{- toYaml .Values.autoscaling.resources | nindent 4 }}
  env:
    - {name: HOME, value: /tmp}
  {{- include "ken-serve.containerSecurity" . | nindent 2 }}
  volumeMounts:
    - {name: autoscaler-tmp, mountPath: /tmp}
    - {name: ray-logs, mountPath: /tmp/ray}
    - {name: autoscaler-token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end -}}

{{- define "ken-serve.scrapeAnnotations" -}}
{{- if and .Values.monitoring.scrapeAnnotations (not .Values.monitoring.podMonitor.enabled) -}}
prometheus.io/scrape: "true"
prometheus.io/port: "8001" # the replica's own port; through 8000 a scrape may reach another replica
prometheus.io/path: /metrics
{{- else -}}
{}
{{- end -}}
{{- end -}}

{{- define "ken-serve.workerResources" -}}
{{- $resources := deepCopy .Values.workers.resources -}}
{{- if eq .Values.device "cuda" -}}
{{- $_ := set $resources.limits .Values.gpu.resource 1 -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "ken-serve.workerPlacement" -}}
{{- $group := deepCopy .Values.workers -}}
{{- if and (eq .Values.device "cuda") .Values.gpu.toleration -}}
{{- $_ := set $group "tolerations" (append $group.tolerations (dict "key" .Values.gpu.resource "operator" "Exists" "effect" "NoSchedule")) -}}
{{- end -}}
{{- include "ken-serve.placement" $group -}}
{{- end -}}

{{- define "ken-serve.workerPod" -}}
{{- $group := .Values.workers -}}
{{- $app := include "ken-serve.name" (list "ray" .) -}}
{{- $annotations := merge (dict) $group.podAnnotations (include "ken-serve.scrapeAnnotations" . | fromYaml) -}}
{{- $drain := int (include "ken-serve.drainSeconds" .) -}}
metadata:
  {{- include "ken-serve.podMetadata" (dict "app" $app "root" . "podLabels" $group.podLabels "podAnnotations" $annotations) | nindent 2 }}
spec:
  {{- include "ken-serve.podSecurity" (dict "user" 10001 "group" 10001) | nindent 2 }}
  terminationGracePeriodSeconds: {{ add $drain 75 }}
  {{- with include "ken-serve.pullSecrets" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with include "ken-serve.workerPlacement" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with $group.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- if kindIs "invalid" $group.topologySpreadConstraints }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          app: {{ $app }}
          ray.io/node-type: worker
  {{- else if $group.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml $group.topologySpreadConstraints | nindent 4 }}
  {{- end }}
  {{- if eq .Values.base.source "claim" }}
  initContainers:
    - name: wait-for-base
      image: {{ include "ken-serve.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [sh, -c, 'until [ -f "$0/config.json" ]; do echo "no config.json in $0 yet"; sleep 5; done', {{ include "ken-serve.basePath" . }}]
      resources:
        limits: {cpu: 100m, memory: 64Mi}
      {{- include "ken-serve.containerSecurity" . | nindent 6 }}
      volumeMounts:
        - {name: base, mountPath: {{ .Values.base.path }}, readOnly: true}
  {{- end }}
  containers:
    - name: ray-worker
      image: {{ include "ken-serve.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      ports:
        - name: serve
          containerPort: 8000
        - name: metrics
          containerPort: 8001
      {{- include "ken-serve.variables" (dict "root" . "group" "workers") | nindent 6 }}
      startupProbe:
        {{- include "ken-serve.rayHealth" . | nindent 8 }}
        periodSeconds: 3
        timeoutSeconds: 3
        failureThreshold: 60
      # this pod's HAProxy answers 200 while it knows of a replica that answers
      readinessProbe:
        httpGet: {path: /-/healthz, port: serve}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: 2
      # only the health of Ray's node: Serve replaces a replica that fails its /healthz within the same pod
      livenessProbe:
        {{- include "ken-serve.rayHealth" . | nindent 8 }}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 12
      lifecycle:
        preStop:
          exec:
            # before Ray ends, load balancers drop the pod, and accepted requests are answered
            command: [sh, -c, sleep {{ $drain }}; ray stop]
      resources:
        {{- include "ken-serve.workerResources" . | nindent 8 }}
      {{- include "ken-serve.containerSecurity" . | nindent 6 }}
      volumeMounts:
        {{- if eq .Values.base.source "claim" }}
        - {name: base, mountPath: {{ .Values.base.path }}, readOnly: true}
        {{- end }}
        {{- include "ken-serve.ownMounts" . | nindent 8 }}
        {{- with $group.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    {{- if eq .Values.base.source "claim" }}
    - name: base
      persistentVolumeClaim:
        claimName: {{ include "ken-serve.claim" . }}
        readOnly: true
    {{- end }}
    {{- include "ken-serve.ownVolumes" (dict "tmp" $group.tmpVolume "data" $group.dataVolume) | nindent 4 }}
    {{- with $group.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
