{{- /* What would fail later, or harm quietly, is refused here, with a sentence. */}}
{{- define "watchkeeper.refusals" -}}
{{- with .Values }}
{{- if not .store.secret }}
  {{- if or (gt (int .api.replicas) 1) .api.autoscaling.enabled }}
    {{- fail "SQLite is for one pod: set store.secret to a secret with the URL of a PostgreSQL, or api.replicas to 1 without autoscaling." }}
  {{- end }}
  {{- if .worker.enabled }}
    {{- fail "Workers share a store with the API, which SQLite on a volume cannot be: set store.secret, or worker.enabled to false." }}
  {{- end }}
{{- end }}

{{- $longest := .settings.maxTimeoutS }}
{{- $whose := "settings.maxTimeoutS" }}
{{- range $name, $limits := .agents.limits }}
  {{- if gt (float64 ($limits.max_timeout_s | default 0)) (float64 $longest) }}
    {{- $longest = $limits.max_timeout_s }}
    {{- $whose = printf "max_timeout_s of the agent %s" $name }}
  {{- end }}
{{- end }}
{{- if and (lt (float64 .settings.drainS) (float64 $longest)) (not .allowCutRuns) }}
  {{- fail (printf "A deploy would cut runs: settings.drainS (%v s) is shorter than the longest deadline (%v s, %s). Make them meet, or set allowCutRuns to true." .settings.drainS $longest $whose) }}
{{- end }}

{{- if not (kindIs "invalid" .gracePeriodS) }}
  {{- $least := include "watchkeeper.leastGraceS" $ | int }}
  {{- if lt (int .gracePeriodS) $least }}
    {{- fail (printf "A pod would be killed while it drains: gracePeriodS (%v s) is shorter than preStopS, drainNoticeS, drainS and 10 s (%v s). Leave it empty, or make it as long." .gracePeriodS $least) }}
  {{- end }}
{{- end }}

{{- if .ingress.enabled }}
  {{- if not .ingress.allowWithoutKeys }}
    {{- fail "The service has no keys: behind an ingress, whoever finds it may spend your tokens and cancel runs. If something before it lets in only whom you mean, set ingress.allowWithoutKeys to true." }}
  {{- end }}
  {{- if not .ingress.host }}
    {{- fail "ingress.host is empty: an ingress without a host answers for all of them." }}
  {{- end }}
{{- end }}

{{- if .networkPolicy.enabled }}
  {{- if and .store.secret (not .networkPolicy.egress.store) }}
    {{- fail "The network policy would keep pods from their store: say in networkPolicy.egress.store where PostgreSQL is." }}
  {{- end }}
  {{- if and .telemetry.otlpEndpoint (not .networkPolicy.egress.collector) }}
    {{- fail "The network policy would keep spans from telemetry.otlpEndpoint: say in networkPolicy.egress.collector where it is." }}
  {{- end }}
{{- end }}

{{- range $kind := list "api" "worker" }}
  {{- with (index $.Values $kind).autoscaling }}
    {{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) }}
      {{- fail (printf "%s.autoscaling.minReplicas (%v) is more than maxReplicas (%v)." $kind .minReplicas .maxReplicas) }}
    {{- end }}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}
