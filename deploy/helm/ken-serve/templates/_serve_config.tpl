{{/* The replicas of the deployment. */}}
{{- define "ken-serve.replicas" -}}
{{- with .Values.autoscaling -}}
{{- if .enabled -}}
autoscaling_config:
  min_replicas: {{ int .min }}
  max_replicas: {{ int .max }}
  target_ongoing_requests: {{ toJson .targetOngoingRequests }}
  upscale_delay_s: {{ toJson .upscaleDelaySeconds }}
  downscale_delay_s: {{ toJson .downscaleDelaySeconds }}
  look_back_period_s: {{ toJson .lookBackPeriodSeconds }}
{{- else -}}
num_replicas: {{ include "ken-serve.fixedReplicas" $ }}
{{- end -}}
{{- end }}
{{- end -}}

{{/* serveConfigV2: settings go here and not into the environment, since the head reads them once for all replicas. */}}
{{- define "ken-serve.serveConfig" -}}
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: 8000
logging_config:
  log_level: WARNING
  enable_access_log: false
applications:
  - name: ken
    route_prefix: /
    import_path: serving.app:build
    deployments:
      - name: Replica
        {{- include "ken-serve.replicas" . | nindent 8 }}
        max_surge_percent: {{ include "ken-serve.maxSurgePercent" . }}
        # longer than an accepted request may take, and than load balancers need to stop sending new ones
        graceful_shutdown_timeout_s: {{ max 60 (add 15 (int (include "ken-serve.drainSeconds" .))) }}
    args: # any change here replaces every replica, beside the old ones as far as max_surge_percent allows
      base: {{ include "ken-serve.basePath" . }}
      host: 0.0.0.0 # not loopback, so requests need a key or the admin token
      port: 8000
      metrics_port: 8001
      data_dir: /var/lib/ken
      device: {{ .Values.device }}
      threads: {{ int .Values.workers.resources.limits.cpu }}
      request_timeout_seconds: {{ int .Values.requestTimeoutSeconds }}
      {{- range $name, $value := omit .Values.settings "max_connections" "max_connections_per_source" }}
      {{ $name }}: {{ toJson $value }}
      {{- end }}
{{- end -}}
