{{- define "dispatcher.name" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "dispatcher.selector" -}}
app.kubernetes.io/name: dispatcher
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "dispatcher.labels" -}}
{{ include "dispatcher.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The pods that answer the API: all of them, or those of the Deployment. */}}
{{- define "dispatcher.serving" -}}
{{ include "dispatcher.selector" . }}
app.kubernetes.io/component: {{ ternary "api" "deliver" .Values.split }}
{{- end -}}

{{- define "dispatcher.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "dispatcher.name" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "dispatcher.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default .Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{/* A variable that a Secret gives: list NAME (dict "secret" "key"). */}}
{{- define "dispatcher.secretVariable" -}}
{{- $name := index . 0 -}}{{- $from := index . 1 -}}
- name: {{ $name }}
  valueFrom:
    secretKeyRef: {name: {{ $from.secret }}, key: {{ $from.key }}}
{{- end -}}

{{- define "dispatcher.sasl" -}}
{{- if hasPrefix "sasl_" .Values.kafka.securityProtocol }}true{{ end -}}
{{- end -}}

{{- define "dispatcher.tls" -}}
{{- if hasSuffix "ssl" .Values.kafka.securityProtocol }}true{{ end -}}
{{- end -}}

{{/* Mistakes that the schema can't tell. */}}
{{- define "dispatcher.check" -}}
{{- $kafka := .Values.kafka -}}
{{- if not $kafka.servers }}{{ fail "kafka.servers is required: host:9092,host2:9092" }}{{ end -}}
{{- if not .Values.apiKeys.secret }}{{ fail "apiKeys.secret is required: the Secret whose key api-keys holds the keys of the API" }}{{ end -}}
{{- if include "dispatcher.sasl" . -}}
{{- if not (and $kafka.username $kafka.password.secret) }}{{ fail (printf "kafka.username and kafka.password.secret are required with kafka.securityProtocol %s" $kafka.securityProtocol) }}{{ end -}}
{{- end -}}
{{- if and (or $kafka.ca.secret $kafka.certificate.secret) (not (include "dispatcher.tls" .)) }}{{ fail "kafka.ca and kafka.certificate have no effect: kafka.securityProtocol must be ssl or sasl_ssl" }}{{ end -}}
{{- if and .Values.deliver.hpa.enabled .Values.deliver.keda.enabled }}{{ fail "deliver.hpa and deliver.keda would scale the same StatefulSet: enable one of them" }}{{ end -}}
{{- if and (or .Values.strimzi.topics .Values.strimzi.user) (not .Values.strimzi.cluster) }}{{ fail "strimzi.cluster is required: the name of the Kafka resource" }}{{ end -}}
{{- range list "broker" "http" }}
{{- if hasKey $.Values.settings . }}{{ fail (printf "settings.%s: the chart writes it by itself; use kafka.servers and service" .) }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* A pod of one role: dict "root" $ "role" "deliver" "values" .Values.deliver "roles" "" (all) or a list of roles, "serves" whether it answers the API. */}}
{{- define "dispatcher.pod" -}}
{{- $root := .root -}}{{- $values := .values -}}{{- $kafka := .root.Values.kafka -}}
metadata:
  labels:
    {{- include "dispatcher.selector" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .role }}
    app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
    {{- with $values.podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  annotations:
    # Settings are read at the start; the subscriptions file is read again by itself.
    checksum/settings: {{ include (print $root.Template.BasePath "/settings.yaml") $root | sha256sum }}
    {{- if eq $root.Values.monitoring.kind "annotations" }}
    prometheus.io/scrape: "true"
    prometheus.io/port: "8080"
    prometheus.io/path: /metrics
    {{- end }}
    {{- with $values.podAnnotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  serviceAccountName: {{ include "dispatcher.serviceAccount" $root }}
  automountServiceAccountToken: false
  # The namespace's Services would come as DISPATCHER_... variables.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ $root.Values.terminationGracePeriodSeconds }}
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.topologySpread }}
  topologySpreadConstraints:
    {{- range . }}
    - maxSkew: {{ default 1 .maxSkew }}
      topologyKey: {{ .topologyKey }}
      whenUnsatisfiable: {{ .whenUnsatisfiable }}
      labelSelector:
        matchLabels:
          {{- include "dispatcher.selector" $root | nindent 10 }}
          app.kubernetes.io/component: {{ $.role }}
    {{- end }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  containers:
    - name: dispatcher
      image: {{ include "dispatcher.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args: [run]
      env:
        - {name: DISPATCHER_CONFIG, value: /etc/dispatcher/settings/dispatcher.yaml}
        {{- with .roles }}
        - {name: DISPATCHER_ROLES, value: {{ . | quote }}}
        {{- end }}
        - {name: DISPATCHER_HTTP__HOST, value: {{ $root.Values.host | quote }}}
        - {name: DISPATCHER_HTTP__PORT, value: "8080"}
        # A replica that comes back by the same name has its partitions again at once.
        - name: DISPATCHER_KAFKA__MEMBER_NAME
          {{- if eq .role "deliver" }}
          valueFrom:
            fieldRef: {fieldPath: metadata.name}
          {{- else }}
          value: "off"
          {{- end }}
        {{- include "dispatcher.secretVariable" (list "DISPATCHER_API__KEYS" $root.Values.apiKeys) | nindent 8 }}
        {{- if $root.Values.secretsKeys.secret }}
        {{- include "dispatcher.secretVariable" (list "DISPATCHER_API__SECRETS_KEYS" $root.Values.secretsKeys) | nindent 8 }}
        {{- end }}
        {{- if include "dispatcher.sasl" $root }}
        {{- include "dispatcher.secretVariable" (list "DISPATCHER_KAFKA__SASL_PASSWORD" $kafka.password) | nindent 8 }}
        {{- end }}
        {{- with $root.Values.env }}{{ toYaml . | nindent 8 }}{{ end }}
      {{- with $root.Values.envFrom }}
      envFrom: {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - {name: http, containerPort: 8080}
      # A broker that is away makes it unready, never dead: what starts it anew is the event loop that doesn't turn.
      startupProbe:
        httpGet: {path: /healthz, port: http}
        periodSeconds: 2
        failureThreshold: 30
      livenessProbe:
        httpGet: {path: /healthz, port: http}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: {path: /readyz, port: http}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 2
      {{- if and .serves (gt (int $root.Values.preStopSeconds) 0) }}
      lifecycle:
        preStop:
          exec: {command: [sleep, {{ $root.Values.preStopSeconds | quote }}]}
      {{- end }}
      resources: {{- toYaml $values.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      volumeMounts:
        - {name: settings, mountPath: /etc/dispatcher/settings, readOnly: true}
        {{- if $root.Values.subscriptions }}
        - {name: subscriptions, mountPath: /etc/dispatcher/subscriptions, readOnly: true}
        {{- end }}
        {{- if $kafka.ca.secret }}
        - {name: kafka-ca, mountPath: /etc/dispatcher/kafka-ca, readOnly: true}
        {{- end }}
        {{- if $kafka.certificate.secret }}
        - {name: kafka-certificate, mountPath: /etc/dispatcher/kafka-certificate, readOnly: true}
        {{- end }}
        - {name: data, mountPath: /var/lib/dispatcher}
  volumes:
    - name: settings
      configMap: {name: {{ include "dispatcher.name" $root }}-settings}
    {{- if $root.Values.subscriptions }}
    - name: subscriptions
      configMap: {name: {{ include "dispatcher.name" $root }}-subscriptions}
    {{- end }}
    {{- if $kafka.ca.secret }}
    - name: kafka-ca
      secret:
        secretName: {{ $kafka.ca.secret }}
        items: [{key: {{ $kafka.ca.key }}, path: ca.crt}]
    {{- end }}
    {{- if $kafka.certificate.secret }}
    - name: kafka-certificate
      secret:
        secretName: {{ $kafka.certificate.secret }}
        # The user of the container reads it as one of its group.
        defaultMode: 0440
        items: [{key: {{ $kafka.certificate.cert }}, path: tls.crt}, {key: {{ $kafka.certificate.key }}, path: tls.key}]
    {{- end }}
    {{- if not (and $root.Values.persistence.enabled (eq .role "deliver")) }}
    - name: data
      emptyDir: {sizeLimit: {{ $root.Values.dataSizeLimit }}}
    {{- end }}
{{- end -}}
