// Runs JavaScript snippets one after the other in one scope, as the prompt of node does: a block may use what those before it have
// made. The debugger's evaluation knows await at the top, but not import(), which becomes require. A static import, which the
// prompt refuses, is refused here too.
//
// Reads {"code", "environment"} a line, writes {"output", "failed"} a line.

const { createInterface } = require('node:readline')
const { createRequire } = require('node:module')
const { Session } = require('node:inspector')
const { format } = require('node:util')

const DYNAMIC_IMPORT = /\bawait import\((['"][^'"]+['"])\)/g

globalThis.require = createRequire(`${process.cwd()}/snippet.cjs`)
let printed = ''
console.log = (...values) => { printed += format(...values) + '\n' }

const session = new Session()
session.connect()

function evaluate (code) {
  const expression = code.replace(DYNAMIC_IMPORT, 'require($1)')
  const options = { expression, replMode: true, awaitPromise: true }
  return new Promise((resolve) => session.post('Runtime.evaluate', options, (error, result) => {
    const thrown = error ?? result.exceptionDetails
    if (thrown) printed += `${thrown.exception?.description ?? thrown.text ?? thrown.message}\n`
    resolve(Boolean(thrown))
  }))
}

async function main () {
  for await (const line of createInterface({ input: process.stdin })) {
    const request = JSON.parse(line)
    Object.assign(process.env, request.environment)
    printed = ''
    const failed = await evaluate(request.code)
    process.stdout.write(JSON.stringify({ output: printed, failed }) + '\n')
  }
}

main()
