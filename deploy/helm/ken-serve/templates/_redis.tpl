{{/* A Redis that keeps what it holds. Takes its values, with root, component, passwordKey and startSeconds. */}}
{{- define "ken-serve.redis" -}}
{{- $name := include "ken-serve.name" (list .component .root) -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "ken-serve.metadata" (dict "component" .component "root" .root) | nindent 2 }}
spec:
  clusterIP: None
  selector:
    app: {{ $name }}
  ports:
    - name: redis
      port: 6379
      targetPort: redis
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  {{- include "ken-serve.metadata" (dict "component" .component "root" .root) | nindent 2 }}
spec:
  serviceName: {{ $name }}
  replicas: 1
  selector:
    matchLabels:
      app: {{ $name }}
  template:
    metadata:
      {{- include "ken-serve.podMetadata" (pick . "component" "root" "podAnnotations") | nindent 6 }}
    spec:
      {{- include "ken-serve.podSecurity" (dict "user" 999 "group" 1000) | nindent 6 }}
      terminationGracePeriodSeconds: 60
      {{- with include "ken-serve.pullSecrets" .root | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- with include "ken-serve.placement" . | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      containers:
        - name: redis
          image: {{ include "ken-serve.imageName" .image }}
          imagePullPolicy: {{ .image.pullPolicy }}
          command: [redis-server]
          args:
            - --dir
            - /data
            - --requirepass
            - $(REDISCLI_AUTH)
            - --appendonly
            - "yes"
            {{- if eq .component "redis" }}
            # with one sync a second, a crash loses changes that replicas have seen, and they then report that the store
            # has another past; changes are rare
            - --appendfsync
            - always
            {{- end }}
            - --save
            - ""
            # when memory is full, writing fails, but nothing is evicted
            - --maxmemory-policy
            - noeviction
            - --maxmemory
            - {{ .maxMemory }}
          env: # redis-cli reads it in the probes
            {{- include "ken-serve.secretVariable" (list "REDISCLI_AUTH" .passwordKey .root) | nindent 12 }}
          ports:
            - name: redis
              containerPort: 6379
          startupProbe:
            exec: &answers
              command: [sh, -c, redis-cli ping | grep -q PONG]
            periodSeconds: 2
            failureThreshold: {{ div .startSeconds 2 }} # time to read its append-only file
          readinessProbe:
            exec: *answers
            periodSeconds: 5
            timeoutSeconds: 3
          livenessProbe:
            tcpSocket:
              port: redis
            periodSeconds: 10
            failureThreshold: 6
          resources:
            {{- toYaml .resources | nindent 12 }}
          {{- include "ken-serve.containerSecurity" .root | nindent 10 }}
          volumeMounts:
            - name: data
              mountPath: /data
  volumeClaimTemplates:
    - metadata:
        name: data
      spec:
        accessModes: [ReadWriteOnce]
        {{- with .storage.storageClass }}
        storageClassName: {{ . }}
        {{- end }}
        resources:
          requests:
            storage: {{ .storage.size }}
{{- end -}}
