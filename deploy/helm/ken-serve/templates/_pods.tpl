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
