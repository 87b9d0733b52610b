{{/* Pods of the release. */}}
{{- define "ken-serve.allPods" -}}
{{- if .Values.networkPolicy.wholeNamespace -}}
{}
{{- else -}}
matchExpressions:
  - key: app
    operator: In
    values:
      - {{ include "ken-serve.name" (list "ray" .) }}
      - {{ include "ken-serve.name" (list "redis" .) }}
      - {{ include "ken-serve.name" (list "gcs-redis" .) }}
      - {{ include "ken-serve.name" (list "base-download" .) }}
{{- end -}}
{{- end -}}

{{/* A list of ports. */}}
{{- define "ken-serve.ports" -}}
ports:
{{- range . }}
  - port: {{ int . }}
{{- end }}
{{- end -}}

{{/* Rules for egress. Takes the map with `to` and `ports`. Without peers no rule: it would hold for everybody. */}}
{{- define "ken-serve.egress" -}}
{{- if .to -}}
- to:
    {{- toYaml .to | nindent 4 }}
  {{- include "ken-serve.ports" .ports | nindent 2 }}
{{- else -}}
[]
{{- end -}}
{{- end -}}

{{/* Rules for ingress to Ray's pods. Takes a list: the peers, the ports. Without peers, nobody comes in. */}}
{{- define "ken-serve.ingress" -}}
{{- if index . 0 -}}
- from:
    {{- toYaml (index . 0) | nindent 4 }}
  {{- include "ken-serve.ports" (index . 1) | nindent 2 }}
{{- else -}}
[]
{{- end -}}
{{- end -}}

{{/* Lets Ray's nodes and nothing else reach a Redis. Takes a list: the component, the root. */}}
{{- define "ken-serve.redisPolicy" -}}
{{- $component := index . 0 -}}{{- $root := index . 1 -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- $named := eq $component "redis" | ternary "store" $component -}}
  {{- include "ken-serve.metadata" (dict "component" $named "root" $root) | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      app: {{ include "ken-serve.name" (list $component $root) }}
  policyTypes: [Ingress]
  ingress:
    - from:
        - podSelector:
            matchLabels:
              app: {{ include "ken-serve.name" (list "ray" $root) }}
      ports:
        - port: 6379
{{- end -}}
