{{- /* A Deployment of pods that serve, or of pods that work: (dict "root" $ "component" "api"). */}}
{{- define "watchkeeper.deployment" -}}
{{- $root := .root }}
{{- $component := .component }}
{{- $own := index .root.Values .component }}
{{- $shared := not (empty .root.Values.store.secret) }}
{{- with .root.Values -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "watchkeeper.name" $root }}-{{ $component }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "watchkeeper.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ $component }}
spec:
  {{- if not $own.autoscaling.enabled }}
  replicas: {{ $own.replicas }}
  {{- end }}
  strategy:
    {{- if $shared }}
    type: RollingUpdate
    rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
    {{- else }}
    # The volume is for one pod at a time.
    type: Recreate
    {{- end }}
  selector:
    matchLabels:
      {{- include "watchkeeper.selector" $root | nindent 6 }}
      app.kubernetes.io/component: {{ $component }}
  template:
    metadata:
      labels:
        {{- include "watchkeeper.labels" $root | nindent 8 }}
        app.kubernetes.io/component: {{ $component }}
      {{- if or .podAnnotations .agents.limits }}
      annotations:
        {{- with .podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- with .agents.limits }}
        checksum/settings: {{ toJson . | sha256sum }}
        {{- end }}
      {{- end }}
    spec:
      serviceAccountName: {{ include "watchkeeper.name" $root }}
      automountServiceAccountToken: false
      # A Service named watchkeeper would otherwise set WATCHKEEPER_PORT to an address.
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ kindIs "invalid" .gracePeriodS | ternary (include "watchkeeper.leastGraceS" $root) .gracePeriodS }}
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        fsGroup: 10001
        fsGroupChangePolicy: OnRootMismatch
        seccompProfile: {type: RuntimeDefault}
      {{- with .image.pullSecrets }}
      imagePullSecrets:
        {{- range . }}
        - name: {{ . }}
        {{- end }}
      {{- end }}
      containers:
        - name: watchkeeper
          image: {{ include "watchkeeper.image" $root | quote }}
          imagePullPolicy: {{ .image.pullPolicy }}
          args: {{ include "watchkeeper.command" (dict "values" . "component" $component) }}
          env:
            {{- include "watchkeeper.environment" . | nindent 12 }}
          ports:
            - {name: http, containerPort: 8000, protocol: TCP}
          startupProbe:
            httpGet: {path: /health/startup, port: http}
            periodSeconds: 2
            timeoutSeconds: 2
            failureThreshold: 60
          livenessProbe:
            httpGet: {path: /health/live, port: http}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          readinessProbe:
            httpGet: {path: /health/ready, port: http}
            periodSeconds: 2
            timeoutSeconds: 2
            failureThreshold: 2
          lifecycle:
            preStop:
              sleep: {seconds: {{ .preStopS }}}
          resources:
            {{- toYaml $own.resources | nindent 12 }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
          volumeMounts:
            - {name: data, mountPath: /var/lib/watchkeeper}
            - {name: temporary, mountPath: /tmp}
            {{- if .agents.configMap }}
            - {name: agents, mountPath: /srv, readOnly: true}
            {{- end }}
            {{- if .agents.limits }}
            - {name: settings, mountPath: /etc/watchkeeper, readOnly: true}
            {{- end }}
      volumes:
        - name: data
          {{- if $shared }}
          emptyDir: {sizeLimit: 1Gi}
          {{- else }}
          persistentVolumeClaim:
            claimName: {{ .store.volume.existingClaim | default (printf "%s-data" (include "watchkeeper.name" $root)) }}
          {{- end }}
        - name: temporary
          emptyDir: {sizeLimit: 256Mi}
        {{- if .agents.configMap }}
        - name: agents
          configMap: {name: {{ .agents.configMap }}}
        {{- end }}
        {{- if .agents.limits }}
        - name: settings
          configMap: {name: {{ include "watchkeeper.name" $root }}-settings}
        {{- end }}
      topologySpreadConstraints:
        {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
        - topologyKey: {{ . }}
          maxSkew: 1
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "watchkeeper.selector" $root | nindent 14 }}
              app.kubernetes.io/component: {{ $component }}
          # Pods of the release before do not count while it is replaced.
          matchLabelKeys: [pod-template-hash]
        {{- end }}
      {{- with .nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .affinity }}
      affinity: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
{{- end }}
{{- end }}

{{- /* Arguments of `watchkeeper`, which the image starts by name so that no path is known here. */}}
{{- define "watchkeeper.command" -}}
{{- $command := list "watchkeeper" (eq .component "worker" | ternary "worker" "serve") }}
{{- if and (eq .component "api") .values.worker.enabled }}
  {{- $command = append $command "--no-background" }}
{{- end }}
{{- if .values.agents.limits }}
  {{- $command = concat $command (list "--config" "/etc/watchkeeper/settings.toml") }}
{{- end }}
{{- concat $command .values.agents.serve | toJson }}
{{- end }}

{{- define "watchkeeper.environment" -}}
- {name: WATCHKEEPER_HOST, value: "0.0.0.0"}
- {name: WATCHKEEPER_PORT, value: "8000"}
- {name: WATCHKEEPER_DATA_DIR, value: /var/lib/watchkeeper}
{{- range $name, $value := .settings }}
- {name: WATCHKEEPER_{{ $name | snakecase | upper }}, value: {{ include "watchkeeper.plain" $value | quote }}}
{{- end }}
{{- if .store.secret }}
- name: WATCHKEEPER_STORE_URL
  valueFrom:
    secretKeyRef: {name: {{ .store.secret }}, key: {{ .store.key }}}
{{- end }}
{{- with .telemetry.otlpEndpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- range $name, $value := .environment }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- range $name, $from := .secretEnvironment }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef: {name: {{ $from.secret }}, key: {{ $from.key }}}
{{- end }}
{{- end }}
