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
{{- $tolerated := dict "key" .Values.gpu.resource "operator" "Exists" "effect" "NoSchedule" -}}
{{- $_ := set $group "tolerations" (append $group.tolerations $tolerated) -}}
{{- end -}}
{{- include "ken-serve.placement" $group -}}
{{- end -}}

{{- define "ken-serve.workerPod" -}}
{{- $group := .Values.workers -}}
{{- $app := include "ken-serve.name" (list "ray" .) -}}
{{- $annotations := merge (dict) $group.podAnnotations (include "ken-serve.scrapeAnnotations" . | fromYaml) -}}
{{- $drain := int (include "ken-serve.drainSeconds" .) -}}
metadata:
  {{- $own := dict "podLabels" $group.podLabels "podAnnotations" $annotations -}}
  {{- include "ken-serve.podMetadata" (merge (dict "component" "ray" "root" .) $own) | nindent 2 }}
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
      command: [sh, -c, 'until [ -f "$0/config.json" ]; do echo "no config.json in $0 yet"; sleep 5; done']
      args: [{{ include "ken-serve.basePath" . }}]
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
      # this pod's HAProxy answers 200 while a replica in this pod answers
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
