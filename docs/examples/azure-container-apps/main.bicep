// Orthanc and the gateway as two containers of one Container App, with the app's managed identity as the only credential.
//   az deployment group create --resource-group RG --template-file main.bicep \
//     --parameters workspace=contoso dicomService=imaging gatewayImage=REGISTRY/orthanc-dicomweb-oauth:1.0.0 adminPassword=...
// The identity gets the role DICOM Data Owner on the DICOM service; that may take minutes until it works.

param location string = resourceGroup().location
param workspace string
param dicomService string
param gatewayImage string
param orthancImage string = 'orthancteam/orthanc:26.8.2'
@secure()
param adminPassword string

var dicomUrl = 'https://${workspace}-${dicomService}.dicom.azurehealthcareapis.com/v2/'
var dicomDataOwner = '58a3b984-7adf-4c20-983a-32417c86fbc8'

resource healthWorkspace 'Microsoft.HealthcareApis/workspaces@2024-03-31' existing = {
  name: workspace
}

resource dicom 'Microsoft.HealthcareApis/workspaces/dicomservices@2024-03-31' existing = {
  parent: healthWorkspace
  name: dicomService
}

resource environment 'Microsoft.App/managedEnvironments@2024-03-01' = {
  name: 'orthanc'
  location: location
  properties: {}
}

resource app 'Microsoft.App/containerApps@2024-03-01' = {
  name: 'orthanc'
  location: location
  identity: { type: 'SystemAssigned' }
  properties: {
    environmentId: environment.id
    configuration: {
      ingress: { external: false, targetPort: 8042 }
      secrets: [
        { name: 'gateway-toml', value: loadTextContent('gateway.toml') }
        { name: 'admin-password', value: adminPassword }
      ]
    }
    template: {
      scale: { minReplicas: 1, maxReplicas: 1 } // Orthanc's database is for one; the gateway would not mind
      volumes: [
        { name: 'config', storageType: 'Secret', secrets: [{ secretRef: 'gateway-toml', path: 'gateway.toml' }] }
        { name: 'ca', storageType: 'EmptyDir' }
      ]
      containers: [
        {
          name: 'gateway'
          image: gatewayImage
          args: ['run']
          resources: { cpu: json('0.25'), memory: '0.5Gi' }
          env: [
            { name: 'DICOM_URL', value: dicomUrl }
            { name: 'ADMIN_PASSWORD', secretRef: 'admin-password' }
          ]
          volumeMounts: [
            { volumeName: 'config', mountPath: '/etc/orthanc-dicomweb-oauth' }
            { volumeName: 'ca', mountPath: '/var/lib/orthanc-dicomweb-oauth/ca' }
          ]
          probes: [
            { type: 'Liveness', httpGet: { path: '/livez', port: 3129 } }
            { type: 'Readiness', httpGet: { path: '/readyz', port: 3129 } }
          ]
        }
        {
          name: 'orthanc'
          image: orthancImage
          resources: { cpu: json('0.75'), memory: '1.5Gi' }
          env: [
            { name: 'DICOM_WEB_PLUGIN_ENABLED', value: 'true' }
            { name: 'ORTHANC__HTTP_PROXY', value: 'http://127.0.0.1:3128' }
            { name: 'ORTHANC__HTTPS_CA_CERTIFICATES', value: '/gateway-ca/bundle.pem' }
            { name: 'ORTHANC__HTTP_TIMEOUT', value: '3600' }
            { name: 'ORTHANC__DICOM_WEB__SERVERS', value: '{"azure": {"Url": "${dicomUrl}"}}' }
          ]
          volumeMounts: [
            { volumeName: 'ca', mountPath: '/gateway-ca' }
          ]
        }
      ]
    }
  }
}

resource mayStore 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(dicom.id, app.id, dicomDataOwner)
  scope: dicom
  properties: {
    principalId: app.identity.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dicomDataOwner)
  }
}
