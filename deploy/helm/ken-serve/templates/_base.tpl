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

{{/* The pod that downloads the checkpoint. */}}
{{- define "ken-serve.downloadPod" -}}
{{- $download := .Values.base.download -}}
metadata:
  {{- include "ken-serve.podMetadata" (dict "component" "base-download" "root" .) | nindent 2 }}
spec:
  restartPolicy: OnFailure
  {{- include "ken-serve.podSecurity" (dict "user" 10001 "group" 10001) | nindent 2 }}
  {{- with include "ken-serve.pullSecrets" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with include "ken-serve.placement" $download | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  containers:
    - name: download
      image: {{ include "ken-serve.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command:
        - python
        - -c
        - |
          {{- .Files.Get "files/download_base.py" | trim | nindent 10 }}
      args: {{ list $download.repository $download.revision (include "ken-serve.basePath" .) | toJson }}
      env:
        - {name: HOME, value: /tmp}
        - {name: HF_HOME, value: /tmp/hub}
        - {name: HF_HUB_DISABLE_TELEMETRY, value: "1"}
        {{- with $download.endpoint }}
        - {name: HF_ENDPOINT, value: {{ . | quote }}}
        {{- end }}
        {{- if $download.token }}
        {{- include "ken-serve.secretVariable" (list "HF_TOKEN" "hub-token" .) | nindent 8 }}
        {{- end }}
      resources:
        {{- toYaml $download.resources | nindent 8 }}
      {{- include "ken-serve.containerSecurity" . | nindent 6 }}
      volumeMounts:
        - {name: base, mountPath: {{ .Values.base.path }}}
        - {name: tmp, mountPath: /tmp}
  volumes:
    - name: base
      persistentVolumeClaim:
        claimName: {{ include "ken-serve.claim" . }}
    - name: tmp
      emptyDir: {sizeLimit: 1Gi}
{{- end -}}

{{/* A pod into whose volume the checkpoint is copied by hand. */}}
{{- define "ken-serve.copyPod" -}}
apiVersion: v1
kind: Pod
metadata:
  name: {{ include "ken-serve.name" (list "base-copy" .) }}
spec:
  {{- include "ken-serve.podSecurity" (dict "user" 10001 "group" 10001) | nindent 2 }}
  terminationGracePeriodSeconds: 0
  {{- with include "ken-serve.pullSecrets" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  containers:
    - name: copy
      image: {{ include "ken-serve.image" . }}
      command: [sleep, "86400"]
      resources:
        limits: {cpu: 500m, memory: 256Mi}
      {{- include "ken-serve.containerSecurity" . | nindent 6 }}
      volumeMounts:
        - {name: base, mountPath: {{ .Values.base.path }}}
  volumes:
    - name: base
      persistentVolumeClaim:
        claimName: {{ include "ken-serve.claim" . }}
{{- end -}}
